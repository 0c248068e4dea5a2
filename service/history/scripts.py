"""The two Lua scripts of the history store: one round trip an operation, atomic, one user a call.

A user's keys share a hash tag, so that a cluster keeps them together:

    espalier:1:{user}:events   sorted set: score = Unix seconds, member = 16 digits of arrival + item id;
                               so equal times stand in order of arrival
    espalier:1:{user}:ids      sorted set: what was accepted lately (idempotence), score = arrival
    espalier:1:{user}:count    how many events were ever accepted; it only grows

The 1 is the schema version; `{user}` is the SHA-256 of the user id in hexadecimal digits.
"""

# KEYS: events, ids, count. ARGV: length, expiry in seconds, then (time, idempotence key or "", item)
# for each event. Returns 1 for each event accepted and 0 for each duplicate.
#
# An event older than all of a full history would be cut off at once: it is acknowledged, and neither
# kept nor counted, so that sending old events again never moves anybody's window.
APPEND = """
local length = tonumber(ARGV[1])
local count = tonumber(redis.call('GET', KEYS[3]) or '0')
local accepted = {}
for at = 3, #ARGV, 3 do
  local time, id, item = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  if id ~= '' and redis.call('ZSCORE', KEYS[2], id) then
    accepted[#accepted + 1] = 0
  else
    accepted[#accepted + 1] = 1
    local full = redis.call('ZCARD', KEYS[1]) >= length
    local oldest = full and redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')[2]
    if not full or tonumber(time) >= tonumber(oldest) then
      count = count + 1
      redis.call('ZADD', KEYS[1], time, string.format('%016d', count) .. item)
      if id ~= '' then
        redis.call('ZADD', KEYS[2], count, id)
      end
      if full then
        redis.call('ZREMRANGEBYRANK', KEYS[1], 0, -(length + 1))
      end
    end
  end
end
local ids = redis.call('ZCARD', KEYS[2])
if ids > 2 * length then
  redis.call('ZREMRANGEBYRANK', KEYS[2], 0, ids - 2 * length - 1)
end
redis.call('SET', KEYS[3], string.format('%d', count))
for _, key in ipairs(KEYS) do
  redis.call('EXPIRE', key, ARGV[2])
end
return accepted
"""

# KEYS: events, count. Returns the count, and the events as one JSON array [member, time, …]: a client
# reads one long string much faster than thousands of short ones.
READ = """
local events = redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES')
local count = tonumber(redis.call('GET', KEYS[2]) or '0')
return {count, #events > 0 and cjson.encode(events) or '[]'}
"""

ARRIVAL_DIGITS = 16
