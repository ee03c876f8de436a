"""Plans of pods: topologies by name, what is said of a step, and what is said if it does not fit."""

import json

import jax
import pytest

from mcl_jax import program
from mcl_jax.errors import UserError
from mcl_jax.planning import plan, topology


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("v5e:16x16", ("tpu", "v5e", (16, 16))),
        ("v4:4x4x8", ("tpu", "v4", (4, 4, 8))),
        ("v5e:1x1", ("tpu", "v5e", (1, 1))),
        ("cpu:8", ("cpu", "", (8,))),
        ("gpu", ("gpu", "", ())),
    ],
)
def test_names_of_topologies(name, expected):
    parsed = topology.parse(name)
    assert (parsed.platform, parsed.version, parsed.shape) == expected


@pytest.mark.parametrize("name", ["v7:2x2", "v5e", "v5e:16", "v5e:0x2", "cpu:x", "gpu:2", "cpu:0"])
def test_other_names_are_refused_with_examples(name):
    with pytest.raises(UserError, match=f"'{name}'.*e.g. v5e:16x16"):
        topology.parse(name)


def test_slices_are_for_pods():
    assert topology.parse("v4:2x2x2", 3).slices == 3
    with pytest.raises(UserError, match="no slices"):
        topology.parse("cpu:8", 2)
    with pytest.raises(UserError, match="0 slices"):
        topology.parse("v4:2x2x2", 0)


@pytest.fixture
def small(config):
    """The cheapest step to compile."""
    config.method, config.supervised.pooling, config.supervised.classes = "supervised", "image", 8
    config.data.image_size = 32
    config.optimizer.epochs = 3.0
    return program.plain_config(config)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("plans")


def test_a_plan_is_the_compiled_step_and_is_compiled_once(small, cache, monkeypatch):
    where = topology.parse("cpu:8")
    planned = plan.make(small, where, images=640, cache=cache, longest=3)
    account = planned.pop("account")
    assert len(account["longest"]) == 3 and account["compilers_bytes"] == planned["bytes"]
    assert planned["chips"] == 8 and planned["hosts"] == 1 and planned["images_per_chip"] == 8
    assert planned["flops"] > 0 and planned["bytes"] > 0 and planned["temporary_bytes"] > 0
    assert planned["collectives"]["all-reduce"] > 10  # every norm, twice
    assert planned["collectives_across_hosts"] == {}
    assert "bound_step_s" not in planned  # a CPU has no published peak
    text = plan.describe(planned)
    assert "8 chips on 1 host(s), B = 64" in text and "all-reduce" in text
    assert "canvases per chip (both sides)    8" in text

    monkeypatch.setattr(jax.stages.Lowered, "compile", None)  # would fail if it were called
    assert plan.make(small, where, images=640, cache=cache) == planned
    assert [json.loads(path.read_text())["flops"] for path in cache.iterdir()] == [planned["flops"]]


def test_the_compiler_gets_the_options(small):
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_no_such_option"):
        plan.make(small, topology.parse("cpu:2"), images=640, options={"xla_no_such_option": True})


def test_bounds_follow_from_published_peaks(small, cache, monkeypatch):
    chip = topology.Chip("test chip", 1e9, 2**40, 1e6, 4, ())
    monkeypatch.setattr(topology, "chip_of", lambda *_: chip)
    monkeypatch.setattr(plan.loader, "pipeline_rate", lambda _: 2.0)
    planned = plan.make(small, topology.parse("cpu:8"), images=640, cache=cache)
    step = planned["bound_step_s"]
    assert step == max(planned["flops"] / 1e9, planned["bytes"] / 1e6)
    assert planned["steps"] == 30  # 640 images in batches of 64, three times
    assert planned["bound_epochs_per_hour"] == pytest.approx(3600 / (10 * step))
    assert planned["bound_chip_hours"] == pytest.approx(30 * step * 8 / 3600)
    assert planned["loader_cores_needed"] == pytest.approx(64 / step / 2)
    assert ("cannot feed" in plan.describe(planned)) == (planned["loader_cores_needed"] > 4)


def test_what_does_not_fit_or_divide_says_what_would(small, cache, monkeypatch):
    where = topology.parse("cpu:8")
    needed = plan.make(small, where, images=640, cache=cache)["peak_bytes"]
    for share, advice in ((0.6, r"about 4 images would fit: data.batch_size 32, or 16 chips"),):
        chip = topology.Chip("test chip", 1e9, needed * share, 1e6, 4, ())
        monkeypatch.setattr(topology, "chip_of", lambda *_, chip=chip: chip)
        with pytest.raises(UserError, match=rf"8 images per device .*{advice}"):
            plan.make(small, where, images=640, cache=cache)
    tiny = topology.Chip("test chip", 1e9, 100.0, 1e6, 4, ())
    monkeypatch.setattr(topology, "chip_of", lambda *_: tiny)
    with pytest.raises(UserError, match="not even one image fits beside"):
        plan.make(small, where, images=640, cache=cache)
    small["data"]["batch_size"] = 60
    with pytest.raises(UserError, match="60 does not divide over 8 devices; 64 would"):
        plan.make(small, where, images=640)


def test_the_compilers_own_refusal_is_understood():
    message = (
        "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.53G of 15.75G hbm."
    )
    assert plan._bytes_asked_for(message) == pytest.approx(20.53 * 2**30)
    assert plan._bytes_asked_for("?") == float("inf")


def test_a_tpu_pod_can_be_described():
    pytest.importorskip("libtpu", reason="the TPU compiler is not installed")
    devices = topology.mesh_devices(topology.parse("v5e:4x4"))
    assert len(devices) == 16 and topology.hosts(devices) == 4
    with pytest.raises(UserError, match="knows no v5e:7x9"):
        topology.mesh_devices(topology.parse("v5e:7x9"))


def test_micro_batches_are_images_of_the_step_and_have_no_bound(small, cache):
    """XLA counts the inside of a loop once: what it says is of one micro-batch."""
    small["optimizer"]["micro_batches"] = 2
    planned = plan.make(small, topology.parse("cpu:2"), images=640, cache=cache)
    assert planned["images_per_chip"] == small["data"]["batch_size"] // 2
    assert "bound_step_s" not in planned
    assert "micro-batches                     2; FLOPs" in plan.describe(planned)
