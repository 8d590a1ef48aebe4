-- Which shard answers: reconciler/core/shards.py and regops/gateways/paths.py, in Lua 5.1 (LuaJIT, as Envoy has it).
-- The shard that weighs most answers: the first 6 bytes of SHA-256 of "project/shard", of equal ones the lowest.
local COUNT = @COUNT@
local KEPT = 20000
local bit = require("bit")
local band, bnot, bxor, ror, rshift, tobit = bit.band, bit.bnot, bit.bxor, bit.ror, bit.rshift, bit.tobit

-- FIPS 180-4, 4.2.2: the first 32 bits of the fractional parts of the cube roots of the first 64 primes; 5.3.3: those
-- of the square roots of the first 8.
local K = {
  0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
  0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
  0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
  0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
  0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
  0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
  0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
  0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
}
local START = {
  0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19,
}
local W = {}

local function compress(state, block, from)
  for i = 1, 16 do
    local a, b, c, d = block:byte(from + 4 * i - 4, from + 4 * i - 1)
    W[i] = tobit(((a * 256 + b) * 256 + c) * 256 + d)
  end
  for i = 17, 64 do
    local x, y = W[i - 15], W[i - 2]
    W[i] = tobit(W[i - 16] + bxor(ror(x, 7), ror(x, 18), rshift(x, 3)) + W[i - 7]
      + bxor(ror(y, 17), ror(y, 19), rshift(y, 10)))
  end
  local a, b, c, d, e, f, g, h = unpack(state)
  for i = 1, 64 do
    local t = tobit(h + bxor(ror(e, 6), ror(e, 11), ror(e, 25)) + bxor(band(e, f), band(bnot(e), g)) + K[i] + W[i])
    local u = tobit(bxor(ror(a, 2), ror(a, 13), ror(a, 22)) + bxor(band(a, b), band(a, c), band(b, c)))
    h, g, f, e, d, c, b, a = g, f, e, tobit(d + t), c, b, a, tobit(t + u)
  end
  for i, word in ipairs({ a, b, c, d, e, f, g, h }) do
    state[i] = tobit(state[i] + word)
  end
end

local function weight(project, shard)
  local text = project .. "/" .. shard
  local bits = #text * 8
  text = text .. "\128" .. string.rep("\0", (55 - #text) % 64)
    .. string.char(0, 0, 0, 0, 0, 0, math.floor(bits / 256), bits % 256)
  local state = { unpack(START) }
  for from = 1, #text, 64 do
    compress(state, text, from)
  end
  return state[1] % 2 ^ 32 * 65536 + math.floor(state[2] % 2 ^ 32 / 65536)
end

local known, kept = {}, 0

local function shard_of(project)
  if known[project] then
    return known[project]
  end
  local best, heaviest = 1, -1
  for shard = 1, COUNT do
    local own = weight(project, shard)
    if own > heaviest then
      best, heaviest = shard, own
    end
  end
  if kept >= KEPT then
    known, kept = {}, 0
  end
  known[project], kept = best, kept + 1
  return best
end

local function decoded(text)
  return (text:gsub("%%(%x%x)", function(digits)
    return string.char(tonumber(digits, 16))
  end))
end

-- The name of the cluster, or what to refuse with.
local function destination(method, path)
  if method ~= "GET" and method ~= "POST" then
    return nil, @METHOD@
  end
  local plain = decoded(path)
  if path:gsub("%%%x%x", ""):find("%", 1, true) or plain:find("//", 1, true) or (plain .. "/"):find("/%.%.?/") then
    return nil, @AMBIGUOUS@
  end
  if (path .. "/"):sub(1, 18) == "/v1/data/platform/" then
    return "platform"
  end
  local segment = path:match("^/v1/data/projects/([^/]+)") or (path:match("^/v1/data/projects/.") and "")
  if not segment then
    return nil, @NOWHERE@
  end
  local project = decoded(segment)
  local label = #project <= 63 and project:find("^[a-z0-9][a-z0-9-]*$") and project:sub(-1) ~= "-"
  if not label or project == "platform" then
    return nil, @NAME@
  end
  return "shard_" .. shard_of(project)
end

function envoy_on_request(handle)
  local headers = handle:headers()
  headers:remove("x-regops-shard")
  local cluster, refusal = destination(headers:get(":method"), headers:get(":path"):match("^[^?]*"))
  if refusal then
    handle:respond({ [":status"] = refusal.status, ["content-type"] = "application/json" }, refusal.body)
  else
    headers:add("x-regops-shard", cluster)
  end
end
