"""`genie.stats()`: what happened so far."""

from typing import Any

from genie import _native, _session


def stats() -> dict[str, Any]:
    """Counters of this process and its session.

    Of the capture, since the process began: `ops`, `template_hits`, `template_misses`,
    `template_hit_rate`, `runs` (synchronous), `fallbacks`, `fallbacks_by_op` ({op: {count,
    reason}}), `capture_ns`, `capture_us_per_op`.
    Of the session: `records` (a compiled graph's run is one), `scripts` (compiled graphs that the
    node keeps), `script_runs`, `bytes_up` and `bytes_down` (everything sent; tensor bytes read),
    `payload_bytes_up`, `payload_bytes_down`, `tape_bytes`, `weight_bytes_saved`, `round_trips`,
    `stalls`, `live_bytes`, `live_storages`, `peak_bytes`, `mode`, `route` (how the host reaches the
    node, in words), `transport` (what tensors take: `shm`, `udp`, ...), `device`, `host_pid`,
    `node_pid`; and, by dotted name, what the host and the node count.
    """
    capture = _native.capture_stats()
    counters = _native.counters()
    memory = _native.memory()
    looked_up = capture["template_hits"] + capture["template_misses"]
    by_op = {op: {"count": count, "reason": reason} for op, (count, reason) in _native.fallbacks_by_op().items()}
    result: dict[str, Any] = {
        "ops": capture["ops"],
        "ops_captured": capture["ops"],
        "template_hits": capture["template_hits"],
        "template_misses": capture["template_misses"],
        "template_hit_rate": capture["template_hits"] / looked_up if looked_up else 0.0,
        "runs": capture["runs"],
        "fallbacks": sum(each["count"] for each in by_op.values()),
        "fallbacks_by_op": by_op,
        "capture_ns": capture["capture_ns"],
        "capture_us_per_op": capture["capture_ns"] / 1e3 / capture["ops"] if capture["ops"] else 0.0,
    }
    names = (
        "tape_bytes payload_bytes_up payload_bytes_down weight_bytes_saved weights_bound weight_queries "
        "round_trips frames marks stalls records scripts script_runs"
    )
    result.update({name: counters.get(name, 0) for name in names.split()})
    # Inline uploads are counted twice here, as payload and as part of the tape: an upper bound.
    result["bytes_up"] = result["tape_bytes"] + result["payload_bytes_up"]
    result["bytes_down"] = result["payload_bytes_down"]
    result.update({name: memory[name] for name in ("live_bytes", "live_storages", "peak_bytes")})
    welcome = _native.welcome() or {"devices": [], "host_pid": 0, "node_pid": 0}
    result["mode"] = _session.mode()
    result["device"] = welcome["devices"][0][1] if welcome["devices"] else ""
    result["host_pid"] = welcome["host_pid"]
    result["node_pid"] = welcome["node_pid"]
    if _native.is_live():
        try:
            result.update(_native.status())
        except RuntimeError as error:
            result["status_error"] = str(error)
    # A link may have gone over to another transport since the welcome.
    result["mode"] = result.get("host.session.mode") or result["mode"]
    result["route"] = result.get("host.session.route") or welcome.get("route", "")
    result["transport"] = result.get("host.session.transport", "")
    return result
