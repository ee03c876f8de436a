"""The measurement of an accelerator: parts within a budget, commands within theirs, what is read."""

import gc
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import command_line
import jax
import jax.numpy as jnp
import pytest
from conftest import QUICK_COMPILE, tiny_config
from jax.profiler import ProfileData
from stand_in_backbone import use_stand_in_backbone

from mcl_jax import cli, program, sharding
from mcl_jax.bench import accelerator, commands, restart, step
from mcl_jax.bench.parts import Budget, Part, run
from mcl_jax.report import profile
from mcl_jax.runtime import compile_cache
from mcl_jax.runtime.start import THRESHOLD, rare_collections

REPO = Path(__file__).resolve().parent.parent
PYTHON = sys.executable


def test_parts_run_in_order_within_the_budget_and_each_is_written_at_once(tmp_path):
    clock = [0.0]
    seen = []

    def measure(name, seconds, error=None):
        def part(budget, done):
            written = sorted(path.name for path in tmp_path.glob("*.json"))
            seen.append((name, budget.left(), dict(done), written))
            clock[0] += seconds
            if error:
                raise error
            return {"value": seconds}

        return part

    parts = [
        Part("first", 5.0, measure("first", 40.0)),
        Part("broken", 5.0, measure("broken", 10.0, RuntimeError("no such kernel"))),
        Part("long", 60.0, measure("long", 60.0)),
        Part("last", 5.0, measure("last", 1.0)),
    ]
    records = run(
        parts, Budget(100.0, now=lambda: clock[0]), out=tmp_path, about={"device": "a card"}
    )
    assert [(name, left) for name, left, *_ in seen] == [
        ("first", 100.0),
        ("broken", 60.0),
        ("last", 50.0),
    ]
    assert seen[-1][2] == {"first": {"value": 40.0}}  # what failed is no result
    assert seen[-1][3] == ["broken.json", "first.json", "long.json"]
    read = {p.stem: json.loads(p.read_text()) for p in tmp_path.iterdir()}
    assert read == records and all(r["device"] == "a card" for r in read.values())
    statuses = {name: record["status"] for name, record in read.items()}
    assert statuses == {"first": "done", "broken": "failed", "long": "skipped", "last": "done"}
    assert read["broken"]["error"] == "RuntimeError: no such kernel"
    assert read["long"]["reason"] == "50 s are left, it takes at least 60 s"


def test_a_command_is_cut_in_time_with_its_children_or_asked_to_save_first():
    child = "import subprocess; subprocess.run(['sleep', '60'])"
    started = time.monotonic()
    ended = commands.run([PYTHON, "-c", f"print('begun', flush=True); {child}"], 1.0)
    assert ended.cut and ended.code < 0 and time.monotonic() - started < 30
    with pytest.raises(commands.CommandFailed, match="time was up"):
        commands.demand(ended)
    saves = (
        "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(print('saved')));"
        "print('ready', flush=True); time.sleep(60)"
    )
    ended = commands.run([PYTHON, "-c", saves], 20.0, grace_s=18.0)
    assert (ended.code, ended.cut, ended.output) == (0, True, "ready\nsaved\n")
    with pytest.raises(commands.CommandFailed, match="(?s)exit code 3: .*why"):
        commands.demand(commands.run([PYTHON, "-c", "print('why'); raise SystemExit(3)"], 20.0))


def test_parts_come_in_order_of_value_and_change_only_where_asked(tmp_path):
    request = accelerator.Request({}, [], tmp_path)
    names = [part.name for part in accelerator.parts(request)]
    assert names == [name for name in accelerator.LEAST_S if name != "change"]
    changed = accelerator.Request({}, [], tmp_path, changes=["--config.numerics.remat=True"])
    assert [part.name for part in accelerator.parts(changed)][-1] == "change"
    assert [p.name for p in accelerator.parts(request, ["torch", "speed"])] == ["torch", "speed"]


def test_the_script_without_time_skips_every_part_and_says_so(tmp_path):
    command = [PYTHON, REPO / "scripts/on_gpu.py", "--config", REPO / "configs/demo.py"]
    command += [f"--out={tmp_path / 'out'}", f"--scratch={tmp_path / 's'}", "--minutes=0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    records = [json.loads(path.read_text()) for path in (tmp_path / "out").iterdir()]
    assert {record["part"] for record in records} == set(accelerator.LEAST_S) - {"change"}
    for record in records:
        assert record["status"] == "skipped" and record["device"] == "cpu" and record["jax"]
    wrong = subprocess.run([*command, "--parts=sped"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: --parts 'sped' is not one of pretrain, parity, speed,")


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
@pytest.mark.parametrize(
    ("command", "flag"),
    [
        *(("bench gpu", f"--minutes={x}") for x in ("nan", "inf", "-1", "1e300")),
        *(("bench gpu", f"--{x}") for x in ("room_gib=-1", "room_gib=nan", "loader_s=nan")),
        *(("bench step", f"--room_gib={x}") for x in ("nan", "inf")),
        *(("bench data", f"--seconds={x}") for x in ("nan", "inf")),
        *(("bench start", f"--seconds={x}") for x in ("nan", "inf", "1e300")),
    ],
)
def test_a_time_that_is_no_number_is_one_line_and_nothing_is_begun(
    command, flag, tmp_path, monkeypatch, capsys
):
    for name in ("out", "tmp"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "out")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    assert command_line.run(*command.split(), "--config=demo", flag) == 2
    said = capsys.readouterr().err
    name = flag.partition("=")[0]
    assert said.startswith("error: ") and said.count("\n") == 1 and name in said
    assert {p.name for p in tmp_path.rglob("*")} == {"out", "tmp"}


def test_garbage_is_looked_for_rarely_and_as_before_afterwards():
    before = gc.get_threshold()
    with pytest.raises(RuntimeError), rare_collections():
        assert gc.get_threshold() == THRESHOLD
        raise RuntimeError
    assert gc.get_threshold() == before


def test_config_arguments_are_passed_on():
    arguments = ["--config", "a.py", "--minutes=1", "-config.x.y", "2", "--configs", "--config.z=3"]
    assert cli.config_arguments(arguments) == [
        "--config",
        "a.py",
        "-config.x.y",
        "2",
        "--config.z=3",
    ]


def test_a_run_is_killed_and_resumed_under_watch(tmp_path):
    config = {
        "data.dataset": "scenes",
        "data.batch_size": 16,
        "data.image_size": 32,
        "data.canvas_size": 32,
        "model.fpn_channels": 8,
        "model.neck": "c4",
        "model.head_convs": 1,
        "montage.levels": 1,
        "log.checkpoint_steps": 4,
    }
    command = [PYTHON, str(REPO / "tests/stand_in_pretrain.py"), f"--config={REPO}/configs/demo.py"]
    command += [f"--config.{name}={value}" for name, value in config.items()]
    result = restart.measure(
        [*command, *accelerator.RESTARTED],
        tmp_path / "run",
        environment=compile_cache.variables(tmp_path / "cache") | {"XLA_FLAGS": QUICK_COMPILE},
        steps=24,
        kill_after=5,
        seconds=1500.0,
    )
    assert result["complete"] and len(result["losses"]) >= 24
    assert 4 <= result["resumed_from"] <= result["killed_at"]
    assert result["first_loss_difference"] == result["largest_loss_difference"] == 0
    assert result["first_step_s"] > 0 and result["resumed_first_step_s"] > 0
    assert result["cold"]["programs"] > 0
    assert result["resumed"]["from_cache"] > 0 and result["images_per_s"] > 0
    assert result["resumed"]["compiled_after_first_step"] == []


def test_needed_flops_are_the_assigned_networks_whatever_is_run(monkeypatch):
    use_stand_in_backbone(monkeypatch)
    mesh = sharding.make_mesh(jax.devices()[:1])
    counts = {}
    for pyramid in ("assigned", "full"):
        config = tiny_config()
        config.data.image_size = config.data.canvas_size = 32
        config.data.batch_size, config.model.head_convs = 32, 1
        config.montage.levels, config.loss.pyramid = 2, pyramid
        whole = program.lower_step(program.build(config, mesh, images=32)).cost_analysis()
        counts[pyramid] = whole["flops"], step.needed_flops(config, mesh)
    assert counts["full"][1] == pytest.approx(counts["assigned"][1], rel=1e-12)
    assert 0 < counts["assigned"][1] < counts["assigned"][0] < counts["full"][0]
    # as on a GPU or TPU, whose backends count nothing that is not compiled
    count = jax.stages.Lowered.cost_analysis
    monkeypatch.setattr(
        jax.stages.Lowered,
        "cost_analysis",
        lambda self: count(self) if jax.config.jax_default_device == "cpu" else None,
    )
    assert step.needed_flops(config, mesh) == counts["full"][1]

    def no_cpu(backend):
        raise RuntimeError(f"Unknown backend {backend}")

    monkeypatch.setattr(jax, "local_devices", no_cpu)
    assert step.needed_flops(config, mesh) is None


def test_the_largest_batch_leaves_room_for_state_and_fragments():
    assert step.batch_that_fits(100e9, 1e9, 0.1e9) == 896  # of 940
    assert step.batch_that_fits(2e9, 1e9, 0.1e9) == 0
    assert step.batch_that_fits(0.5e9, 1e9, 0.1e9) == 0


def test_the_profile_names_what_takes_longest():
    x = jnp.ones((256, 4096))  # eight thousand products for every sine

    def long_and_short(x):
        product = jax.lax.optimization_barrier(x @ x.T)  # or both may become one operation
        return jnp.sin(product).sum()

    long = jax.jit(long_and_short).lower(x).compile()
    result = profile.longest(lambda: long(x).block_until_ready(), 3, program_text=long.as_text())
    first = result["operations"][0]
    assert "dot_general" in first["source"] and first["calls_per_step"] >= 1
    shares = [row["share"] for row in result["operations"]]
    assert shares == sorted(shares, reverse=True) and sum(shares) <= 1 + 1e-9
    assert math.isclose(first["ms_per_step"] / result["busy_ms_per_step"], first["share"])
    assert first["name"] in profile.as_text(result)


def test_a_devices_trace_is_read_from_its_streams_or_else_its_operations(tmp_path):
    def plane(name, *lines):
        metadata = 'event_metadata { key: 1 value { id: 1 name: "kernel" } }'
        text = "".join(
            f'lines {{ name: "{line}" events {{ metadata_id: 1 duration_ps: {ps} }} }}'
            for line, ps in lines
        )
        return f'planes {{ name: "{name}" {metadata} {text} }}'

    host = plane("/host:CPU", ("python", 9_000))
    for device, nanoseconds in (
        (plane("/device:GPU:0", ("Stream #1(Compute)", 2_000), ("XLA Ops", 5_000)), 2.0),
        (plane("/device:TPU:0", ("Steps", 7_000), ("XLA Ops", 5_000)), 5.0),
    ):
        space = ProfileData.text_proto_to_serialized_xspace(host + device)
        (tmp_path / "host.xplane.pb").write_bytes(space)
        assert list(profile.read(tmp_path)) == [profile.Event("kernel", "", nanoseconds)]


def test_kernels_of_a_device_are_told_from_its_operations():
    events = [
        profile.Event("cutlass_conv", "conv.1", 6e6),
        profile.Event("cutlass_conv", "conv.2", 2e6),
        profile.Event("loop_fusion", "fusion.1", 2e6),
    ]
    result = profile.summary(events, 2, source_of={"conv.1": "jit(step)/conv"}, count=2)
    assert [row["name"] for row in result["kernels"]] == ["cutlass_conv", "loop_fusion"]
    assert result["kernels"][0] == {
        "name": "cutlass_conv",
        "ms_per_step": 4.0,
        "share": 0.8,
        "calls_per_step": 1.0,
    }
    assert result["operations"][0]["source"] == "jit(step)/conv"
    assert result["busy_ms_per_step"] == 5.0
