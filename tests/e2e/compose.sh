#!/usr/bin/env bash
# Brings the compose file up as an operator would, and looks that it keeps what docs/deploy.md promises.
#
#   tests/e2e/compose.sh            the images must exist: `docker compose build` makes them
#   ARTIFACT=DIR tests/e2e/compose.sh   copies this artifact in as `demo`, instead of training the demo's
#
# It runs under a project name and ports of its own and removes what it made. An image that is not here
# (Grafana's, or vLLM's) is left out and named.
set -uo pipefail
cd "$(dirname "$0")/../.."

export ESPALIER_PORT=18000 ESPALIER_VLLM_CPU_PORT=18001 PROMETHEUS_PORT=19090 GRAFANA_PORT=13000
export COMPOSE_PROJECT_NAME=espalier-e2e COMPOSE_PROFILES=vllm-cpu
unset ESPALIER_ARTIFACTS ESPALIER_CHECKPOINT
url=http://127.0.0.1:$ESPALIER_PORT
vllm_url=http://127.0.0.1:$ESPALIER_VLLM_CPU_PORT
demo_seconds=2400

if docker compose version >/dev/null 2>&1; then compose() { docker compose "$@"; }; else compose() { docker-compose "$@"; }; fi

passed=0 failed=0 skipped=0
check() { # TITLE COMMAND…
    local title=$1; shift
    if "$@"; then passed=$((passed + 1)); echo "ok      $title"; else failed=$((failed + 1)); echo "FAILED  $title"; fi
}
skip() { skipped=$((skipped + 1)); echo "skipped $1"; }
finish() {
    if [ "$failed" -gt 0 ]; then compose logs --no-color --tail 20 service pruning service-vllm-cpu; fi
    compose down --volumes --timeout 30 >/dev/null 2>&1
    echo "$passed passed, $failed failed, $skipped skipped"
    [ "$failed" -eq 0 ]
}
trap 'finish; exit $?' EXIT

within() { # SECONDS COMMAND…: until it succeeds
    local deadline=$((SECONDS + $1)); shift
    until "$@"; do
        [ $SECONDS -lt $deadline ] || return 1
        sleep 1
    done
}
# A field of the JSON on standard input, as a Python expression on `answer`.
field() { python3 -c "import json, sys; answer = json.load(sys.stdin); print($1)"; }
call() { curl -sS --max-time 20 -H "Authorization: Bearer $key" -H 'Content-Type: application/json' "$@"; }
admin() { curl -sS --max-time 400 -H "Authorization: Bearer $token" -H 'Content-Type: application/json' "$@"; }
status() { curl -s -o /dev/null --max-time 20 -w '%{http_code}' "$@"; }
ready() { [ "$(status "${1:-$url}/readyz")" = 200 ]; }
secret() { compose exec -T service cat "/secrets/$1"; }
model() { call "${1:-$url}/recommend" -d '{"user_id": "e2e", "k": 5}' | field "answer['model']"; }
recommended() { call "$1/recommend" -d '{"user_id": "e2e", "k": 10}'; }
same_ranking() { # of two answers: the model's, and place by place the same scores
    python3 -c "
import json, sys
one, other = map(json.loads, sys.argv[1:])
pairs = list(zip(one['items'], other['items'], strict=True))
same = all(abs(a['score'] - b['score']) <= 1e-3 for a, b in pairs)
sys.exit(not (one['strategy'] == other['strategy'] == 'model' and len(pairs) == 10 and same))" "$1" "$2"
}
history_of_e2e() { call "$url/users/e2e/history" | field "[item['item_id'] for item in answer['items']]"; }
container() { compose ps -q "$1"; }
inspect() { docker inspect --format "$2" "$(container "$1")"; }

up() { # [pruning]
    local services=(secrets redis service prometheus "$@")
    if docker image inspect "$(sed -n 's/^ *image: \(grafana.*\)/\1/p' docker-compose.yml)" >/dev/null 2>&1; then
        services+=(grafana)
    fi
    compose up --detach --no-build "${services[@]}" >/dev/null 2>&1
}

serves_from_nothing() { # 503 and the reason, before there is an artifact
    curl -s --max-time 5 "$url/readyz" | grep -q 'no checkpoint'
}
prometheus_sees() { # N: every target is up, N replicas among them
    curl -s "http://127.0.0.1:$PROMETHEUS_PORT/api/v1/targets" | field "
{target['health'] for target in answer['data']['activeTargets']} == {'up'}
and sum(target['scrapeUrl'].endswith(':8000/metrics') for target in answer['data']['activeTargets']) == $1" | grep -q True
}
only_loopback() { # what is published, and to whom
    ! docker ps --filter "label=com.docker.compose.project=$COMPOSE_PROJECT_NAME" --format '{{.Ports}}' \
        | tr ',' '\n' | grep -e '->' | grep -v '127\.0\.0\.1:'
}
confined() { # SERVICE: no root, no writable root, no capability
    [ "$(inspect "$1" '{{.HostConfig.ReadonlyRootfs}} {{.HostConfig.CapDrop}}')" = 'true [ALL]' ] \
        && [ "$(compose exec -T "$1" id -u)" != 0 ]
}
crash() { # the server dies as if it had run out of memory
    compose exec -T service python -c "
import os, pathlib
for process in pathlib.Path('/proc').glob('[0-9]*'):
    if process.name != '1' and b'serve' in (process / 'cmdline').read_bytes().split(b'\0'):
        os.kill(int(process.name), 9)"
}
restarted() { [ "$(inspect service '{{.RestartCount}}')" -gt "$1" ] && ready; }

compose down --volumes >/dev/null 2>&1
up $([ -n "${ARTIFACT:-}" ] || echo pruning)
check "without an artifact /readyz says 503, no checkpoint" within 60 serves_from_nothing
if [ -n "${ARTIFACT:-}" ]; then
    given=$(mktemp -d) && cp -r "$ARTIFACT/." "$given" && chmod -R a+rX "$given"
    compose run --rm --no-deps -T --volume "$given:/given:ro" pruning \
        'cp -r /given artifacts/.given && mv artifacts/.given artifacts/demo' >/dev/null 2>&1
    rm -r "$given"
fi
check "the service becomes ready by itself" within $demo_seconds ready
if ! ready; then exit 1; fi

key=$(secret api-keys) token=$(secret admin-token)
check "a key is asked for" [ "$(status "$url/recommend" -H 'Content-Type: application/json' -d '{"history": []}')" = 401 ]
items=$(call "$url/items?query=the&limit=3" | field "' '.join(item['item_id'] for item in answer['items'])")
read -r first second third <<<"$items"
events="{\"events\": [{\"item_id\": \"$first\", \"timestamp\": 1}, {\"item_id\": \"$second\", \"timestamp\": 2}, {\"item_id\": \"$third\", \"timestamp\": 3}]}"
check "a history is accepted" [ "$(call "$url/users/e2e/events" -d "$events" | field "answer['accepted']")" = 3 ]
answer=$(call "$url/recommend" -d '{"user_id": "e2e", "k": 10}')
check "a recommendation comes from the model" \
    [ "$(field "(answer['strategy'], len(answer['items']), answer['degraded'])" <<<"$answer")" = "('model', 10, None)" ]
checkpoint=$(model) history=$(history_of_e2e)
check "Prometheus' targets are up" within 60 prometheus_sees 1
check "ports are published to loopback only" only_loopback
for service in service redis prometheus; do check "$service is confined" confined $service; done
if [ -n "$(container grafana)" ]; then
    grafana_answers() { [ "$(status "http://127.0.0.1:$GRAFANA_PORT/api/health")" = 200 ]; }
    check "Grafana answers" within 120 grafana_answers
else
    skip "Grafana answers (its image is not here)"
fi

vllm=
image=$(sed -n 's/^ *image: \(espalier-service-vllm-cpu.*\)/\1/p' docker-compose.yml)
if docker image inspect "$image" >/dev/null 2>&1; then
    vllm=yes
    compose up --detach --no-build --no-deps service-vllm-cpu >/dev/null 2>&1
    check "the vLLM replica becomes ready" within 300 ready "$vllm_url"
    check "vLLM gives the native engine's ranking" same_ranking "$(recommended "$url")" "$(recommended "$vllm_url")"
    check "vLLM's own metrics are there" grep -q '^vllm:' <<<"$(curl -s --max-time 20 "$vllm_url/metrics/vllm")"
    check "service-vllm-cpu is confined" confined service-vllm-cpu
    check "Prometheus' targets are up, vLLM's too" within 60 prometheus_sees 2
else
    skip "the vLLM replica (its image is not here)"
fi

# The same weights under another name, told in the manifest, are another checkpoint.
compose run --rm --no-deps -T pruning '
    if test -d var/demo/run; then espalier export var/demo/run --out artifacts/second
    else
        cp -r artifacts/demo artifacts/.second
        sed -i "s/\"name\": *\"demo\"/\"name\": \"second\"/" artifacts/.second/recommender/manifest.json
        mv artifacts/.second artifacts/second
    fi' >/dev/null 2>&1
listed() { admin "$url/checkpoints" | grep -q '"second"'; }
check "an artifact dropped into the folder appears" within 30 listed
check "it is activated" [ "$(admin -X POST "$url/checkpoints/second/activate?wait=true" | field "answer['step']")" = done ]
check "it answers" [ "$(model)" != "$checkpoint" ]
if [ -n "$vllm" ]; then check "the vLLM replica has swapped too" [ "$(model "$vllm_url")" = "$(model)" ]; fi
check "the history outlives the swap" [ "$(history_of_e2e)" = "$history" ]
checkpoint=$(model)

restarts=$(inspect service '{{.RestartCount}}')
crash
check "a killed service comes back" within 90 restarted "$restarts"
check "with the same checkpoint" [ "$(model)" = "$checkpoint" ]
check "with the same histories" [ "$(history_of_e2e)" = "$history" ]

compose down --timeout 30 >/dev/null 2>&1
up pruning
check "down and up: it becomes ready" within 120 ready
check "down and up: the same keys" [ "$(secret api-keys)" = "$key" ]
check "down and up: the same checkpoint" [ "$(model)" = "$checkpoint" ]
check "down and up: the same histories" [ "$(history_of_e2e)" = "$history" ]
nothing_to_do() { compose logs --no-color pruning | grep -q 'nothing to do'; }
check "down and up: the demo is not made again" within 30 nothing_to_do
