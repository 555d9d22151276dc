-- Sends the requests of a file in turn. The file: for each request its length in bytes, a line feed, the request.
-- A second argument is the mean pause in milliseconds that a connection makes before each request. Pauses vary as
-- those between independent callers do (exponentially), so that the connections do not fall into step.
local requests, at = {}, 0

function init(args)
  local file = assert(io.open(args[1], "rb"))
  for length in function() return file:read("*l") end do
    requests[#requests + 1] = file:read(tonumber(length))
  end
  file:close()
  local pause = tonumber(args[2] or 0)
  if pause > 0 then
    -- wrk asks once whether there is such a function, after this one has run.
    function delay()
      return math.floor(0.5 - pause * math.log(1 - math.random()))
    end
  end
end

function request()
  at = at % #requests + 1
  return requests[at]
end

function done(summary, latency)
  local e = summary.errors
  local function ms(percentile) return latency:percentile(percentile) / 1e3 end
  io.write(string.format(
    '{"requests": %d, "seconds": %f, "p50_ms": %f, "p99_ms": %f, "p999_ms": %f, "failed": %d}\n',
    summary.requests, summary.duration / 1e6, ms(50), ms(99), ms(99.9),
    e.connect + e.read + e.write + e.status + e.timeout))
end
