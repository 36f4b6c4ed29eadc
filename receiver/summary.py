"""The run in one JSON object."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

from receiver.memory import peak_rss_mb, rss_mb
from receiver.runtime import Runtime

__all__ = ["summarize", "write_json"]


def _rate(count: int, duration_s: float) -> float:
    return round(count / duration_s, 4) if duration_s > 0 else 0.0


def _ms(seconds: float) -> float:
    return round(1e3 * seconds, 3)


def _offset_ms(offset_s: float | None) -> float | None:
    return None if offset_s is None else round(1e3 * offset_s, 3)


def summarize(run: Runtime) -> dict[str, Any]:
    """What the run did; durations in the unit of each key's name, rates over the inference."""
    actions, slow = run.actions, run.features
    duration = run.inference_s
    # n ticks span n − 1 periods; ticks on hold count as time, not as actions.
    span = (actions.last_action_at or 0.0) - (actions.first_action_at or 0.0)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    views, spec = run.cameras.views, run.policy.spec
    offsets = {"robot": run.robot.clock, "sensor": run.sensor.clock}
    offsets |= {f"camera/{view}": stream.clock for view, stream in views.items()}
    return {
        "duration_s": round(duration, 3),
        "vl_updates": slow.durations.count,
        "vl_ms_mean": round(1e3 * slow.durations.mean, 3),
        "vl_ms_p99": round(1e3 * slow.durations.percentile(99), 3),
        "vl_hz": _rate(slow.durations.count - run.at_start.updates, duration),
        "vl_late": actions.late_updates,
        "vl_failures": slow.failures,
        "actions": actions.total,
        "action_hz": _rate(actions.total - 1, span) if actions.total > 1 else 0.0,
        "action_ms_p50": round(1e3 * actions.inference.percentile(50), 3),
        "action_ms_p99": round(1e3 * actions.inference.percentile(99), 3),
        "action_lateness_ms_p50": round(1e3 * actions.lateness.percentile(50), 3),
        "action_lateness_ms_p99": round(1e3 * actions.lateness.percentile(99), 3),
        "action_lateness_ms_p999": round(1e3 * actions.lateness.percentile(99.9), 3),
        "action_lateness_ms_max": round(1e3 * actions.lateness.worst, 3),
        "deadline_misses": actions.misses,
        "policy_failures": actions.failures,
        "feature_age_ms_p50": round(1e3 * actions.feature_age.percentile(50), 3),
        "feature_age_ms_p99": round(1e3 * actions.feature_age.percentile(99), 3),
        "capture_to_use_ms": {
            stream: {"p50": _ms(ages.percentile(50)), "p99": _ms(ages.percentile(99))}
            for stream, ages in dict(actions.capture_to_use).items()
        },
        "frames": {view: stream.meter.total for view, stream in views.items()},
        "frames_hz": {
            view: _rate(stream.meter.total - run.at_start.frames.get(view, 0), duration)
            for view, stream in views.items()
        },
        "frames_dropped": sum(stream.dropped for stream in views.values()),
        "frames_dropped_by_view": {view: stream.dropped for view, stream in views.items()},
        "frames_reordered": sum(stream.reordered for stream in views.values()),
        "frames_unmapped": dict(run.cameras.unmapped),
        "frames_unused": dict(run.cameras.unused),
        "robot_states": run.robot.meter.total,
        "robot_hz": _rate(run.robot.meter.total - run.at_start.robot_states, duration),
        "sensor_hz": _rate(run.sensor.meter.total - run.at_start.samples, duration),
        "sensor_samples": run.sensor.meter.total,
        "sensor_lost": run.sensor.lost,
        "sensor_reordered": run.sensor.reordered,
        "sensor_duplicates": run.sensor.duplicates,
        "malformed": run.counters.snapshot(),
        "clock_offset_ms": {name: _offset_ms(clock.offset_s) for name, clock in offsets.items()},
        "clock_two_way": [name for name, clock in offsets.items() if clock.two_way],
        "clock_delay_ms": {
            name: _ms(clock.delay_s) for name, clock in offsets.items() if clock.delay_s is not None
        },
        "time_exchanges": run.time.exchanges if run.time else 0,
        "clock_steps": {name: clock.steps for name, clock in offsets.items() if clock.steps},
        "holds": dict(actions.holds),
        "limits_applied": dict(actions.cuts),
        "episodes": run.episodes.current.number if run.episodes.current else 0,
        "results": [str(folder) for folder in run.folders.made],
        "results_lost": run.results.lost,
        "recording": run.recorder.summary(),
        "lines_dropped": run.console.dropped,
        "slow_loop": run.encoder.figures(),
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 3),
        "peak_rss_mb": round(peak_rss_mb(), 1),
        "rss_mb_start": run.at_start.rss_mb,
        "rss_mb_end": rss_mb(),
        "device": spec.device,
        "policy": spec.name,
        "fusion": spec.fusion,
        "task": run.task.get() or spec.task,
        "action_hz_wanted": run.options.action_hz,
        "vl_reuse": run.options.vl_reuse,
    }


def write_json(summary: dict[str, Any], path: Path) -> None:
    """Write the summary so that no reader ever sees half of it; OSError when that fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.part")
    draft.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    draft.replace(path)
