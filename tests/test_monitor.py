"""What TensorBoard gets to see: tags, steps, settings, and the gradients of the adapters."""

import inspect
import json
import re
from datetime import datetime

import numpy as np
import pytest
import torch
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch import nn

from trainer import monitor as monitor_module
from trainer import setup_lora_model
from trainer.lora import adapter_matrices
from trainer.monitor import GradientRecorder, NullMonitor, TensorBoardMonitor


@pytest.fixture
def monitor(tmp_path):
    monitor = TensorBoardMonitor(tmp_path / "logs")
    yield monitor
    monitor.close()


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape))


# ------------------------------------------------------------------------------------------------------------
# The run


def test_each_run_has_a_timestamped_folder_of_its_own(tmp_path, monkeypatch):
    class Noon(datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2026, 3, 1, 12, 0, 0)

    monkeypatch.setattr(monitor_module, "datetime", Noon)
    names = [TensorBoardMonitor(tmp_path / "deep" / "logs").run_dir.name for _ in range(3)]
    assert names == ["20260301-120000", "20260301-120000-2", "20260301-120000-3"]
    assert sorted(path.name for path in (tmp_path / "deep" / "logs").iterdir()) == names


def test_the_folder_is_named_after_the_time(monitor):
    assert re.fullmatch(r"\d{8}-\d{6}", monitor.run_dir.name)


def test_metrics_stand_under_their_tag_at_their_step(monitor, read_events):
    monitor.log_metrics({"train/loss": 1.5, "train/learning_rate": 2e-5}, 10)
    monitor.log_metrics({"train/loss": 0.5}, 20)
    monitor.close()
    events = read_events(monitor.run_dir)
    assert sorted(events.Tags()["scalars"]) == ["train/learning_rate", "train/loss"]
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(10, 1.5), (20, 0.5)]
    assert events.Scalars("train/learning_rate")[0].value == pytest.approx(2e-5)


def test_flush_brings_the_metrics_to_the_disk(monitor, read_events):
    monitor.log_metrics({"eval/score": 0.25}, 0)
    monitor.flush()
    assert read_events(monitor.run_dir).Scalars("eval/score")[0].value == 0.25


def test_the_configuration_is_text_and_hparams_of_the_same_run(monitor, read_events, toy_config):
    settings = toy_config(learning_rate=3e-4, overwrite=True).to_dict()
    monitor.log_config(settings)
    monitor.close()
    assert [path.is_file() for path in monitor.run_dir.iterdir()] == [True]  # no sub-run
    events = read_events(monitor.run_dir)
    (text,) = events.Tensors("config/text_summary")
    fenced = text.tensor_proto.string_val[0].decode()
    assert json.loads(fenced.removeprefix("```json\n").removesuffix("\n```")) == settings

    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    hparams = HParamsPluginData.FromString(content).session_start_info.hparams
    shown = {name: getattr(value, value.WhichOneof("kind")) for name, value in hparams.items()}
    lists = {name: str(value) for name, value in settings.items() if isinstance(value, list)}
    assert shown == settings | lists and lists["lora_target_modules"] == "['query', 'key', 'value']"
    experiment = HParamsPluginData.FromString(events.SummaryMetadata("_hparams_/experiment").plugin_data.content)
    assert [metric.name.tag for metric in experiment.experiment.metric_infos] == ["eval/score"]


def test_the_null_monitor_has_the_same_methods_and_writes_nothing(tmp_path, monkeypatch, toy_config):
    def public(kind: type) -> dict[str, list[str]]:
        methods = inspect.getmembers(kind, inspect.isfunction)
        return {name: list(inspect.signature(f).parameters) for name, f in methods if not name.startswith("_")}

    assert public(NullMonitor) == public(TensorBoardMonitor)
    monkeypatch.chdir(tmp_path)
    null = NullMonitor()
    null.log_config(toy_config().to_dict())
    null.log_metrics({"train/loss": 1.0}, 1)
    null.log_gradients({"a": np.ones(2)}, 1)
    null.flush()
    null.close()
    assert null.run_dir is None and list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------------------
# Gradients: written


def test_a_gradient_is_a_norm_and_a_histogram(monitor, read_events):
    monitor.log_gradients({"layer.query.lora_A": np.array([[3.0, 0.0], [0.0, 4.0]], np.float32)}, 7)
    monitor.close()
    events = read_events(monitor.run_dir)
    assert events.Tags()["scalars"] == ["gradients/layer.query.lora_A_weight_norm"]
    assert events.Tags()["histograms"] == ["gradients/layer.query.lora_A_weight"]
    (norm,) = events.Scalars("gradients/layer.query.lora_A_weight_norm")
    assert (norm.step, norm.value) == (7, 5.0)
    (histogram,) = events.Histograms("gradients/layer.query.lora_A_weight")
    values = histogram.histogram_value
    assert (histogram.step, values.num, values.min, values.max, values.sum) == (7, 4, 0.0, 4.0, 7.0)


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([0.0, 0.0], False),  # B of a fresh adapter is zero, and so is A's first gradient
        ([1e-3, 1e-3], False),
        ([0.9e-10, -0.9e-10], False),  # a spread just below 1e-10
        ([1.1e-10, -1.1e-10], True),
        ([0.0, 1.0], True),
    ],
)
def test_a_histogram_only_where_there_is_a_spread(monitor, read_events, values, shown):
    monitor.log_gradients({"a": np.array(values, np.float32)}, 1)
    monitor.close()
    tags = read_events(monitor.run_dir).Tags()
    assert tags["scalars"] == ["gradients/a_weight_norm"]
    assert tags["histograms"] == (["gradients/a_weight"] if shown else [])


# ------------------------------------------------------------------------------------------------------------
# Gradients: recorded


def test_gradients_come_by_name_and_shape_as_float32():
    first, second, half = parameter(2, 3), parameter(4), nn.Parameter(torch.zeros(2, dtype=torch.float16))
    recorder = GradientRecorder([("first", first), ("second", second), ("half", half)])
    recorder.start()
    ((first * torch.arange(6.0).reshape(2, 3)).sum() + second.sum() * 2 + half.float().sum()).backward()
    gradients = recorder.fetch()
    np.testing.assert_array_equal(gradients["first"], [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(gradients["second"], [2, 2, 2, 2])
    assert {gradient.dtype for gradient in gradients.values()} == {np.dtype(np.float32)} and len(gradients) == 3


def test_nothing_is_kept_without_start_or_after_fetch():
    weight = parameter(2)
    recorder = GradientRecorder([("weight", weight)])
    weight.sum().backward()
    assert recorder.fetch() == {}
    recorder.start()
    weight.sum().backward()
    assert recorder.fetch().keys() == {"weight"}
    weight.sum().backward()
    assert recorder.fetch() == {}


def test_parameters_without_a_gradient_and_empty_ones_are_skipped():
    used, unused, frozen, empty = parameter(2), parameter(2), parameter(2), parameter(0, 3)
    recorder = GradientRecorder([("used", used), ("unused", unused), ("frozen", frozen), ("empty", empty)])
    frozen.requires_grad_(False)
    recorder.start()
    (used.sum() + frozen.sum() + empty.sum()).backward()
    assert empty.grad is not None
    assert recorder.fetch().keys() == {"used"}
    assert recorder.non_finite == 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_gradients_that_are_not_finite_are_skipped_and_counted(bad):
    good, broken = parameter(2), parameter(3)
    recorder = GradientRecorder([("broken", broken), ("good", good)])
    for count in (1, 2):
        recorder.start()
        (good.sum() + (broken * torch.tensor([1.0, bad, 1.0])).sum()).backward()
        assert recorder.fetch().keys() == {"good"}
        assert recorder.non_finite == count


def test_a_step_without_any_gradient_is_empty():
    recorder = GradientRecorder([("weight", parameter(2))])
    recorder.start()
    assert recorder.fetch() == {}


def test_a_step_that_follows_does_not_show_the_one_before():
    first, second = parameter(1), parameter(1)
    recorder = GradientRecorder([("first", first), ("second", second)])
    recorder.start()
    first.sum().backward()
    recorder.start()
    second.sum().backward()
    assert recorder.fetch().keys() == {"second"}


def test_removed_hooks_record_nothing():
    weight = parameter(2)
    recorder = GradientRecorder([("weight", weight)])
    recorder.remove()
    recorder.start()
    weight.sum().backward()
    assert recorder.fetch() == {}


def test_what_is_read_after_unscaling_is_unscaled():
    weight = parameter(3)
    recorder = GradientRecorder([("weight", weight)])
    optimizer = torch.optim.SGD([weight], lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    recorder.start()
    scaler.scale((weight * torch.tensor([1.0, 2.0, 3.0])).sum()).backward()
    assert weight.grad.tolist() == [1024.0, 2048.0, 3072.0]
    scaler.unscale_(optimizer)
    assert recorder.fetch()["weight"].tolist() == [1.0, 2.0, 3.0]


def test_all_gradients_come_from_the_device_in_one_transfer(monkeypatch):
    parameters = [(str(index), parameter(2, 2)) for index in range(9)]
    recorder = GradientRecorder(parameters)
    recorder.start()
    sum(p.sum() for _, p in parameters).backward()
    transfers = []
    for method in ("cpu", "item", "tolist", "to"):
        original = getattr(torch.Tensor, method)
        monkeypatch.setattr(
            torch.Tensor, method, lambda *a, _f=original, _m=method, **k: (transfers.append(_m), _f(*a, **k))[1]
        )
    assert len(recorder.fetch()) == 9
    assert transfers == ["cpu"]


def test_one_tag_for_each_adapted_layer_and_matrix(toy_model, toy_config, monitor, read_events):
    model = setup_lora_model(toy_model, toy_config(lora_target_modules=["query", "key", "value", "dense"]))
    recorder = GradientRecorder(adapter_matrices(model))
    model.train()
    for _, matrix in adapter_matrices(model):
        nn.init.normal_(matrix, std=0.1)  # B starts at zero, and A would have a gradient without spread
    recorder.start()
    weights = torch.linspace(-1, 1, 32)
    (model(model.preprocess(["query: 대한민국", "passage: 서울"]))["sentence_embedding"] * weights).sum().backward()
    monitor.log_gradients(recorder.fetch(), 1)
    monitor.close()
    layers = [
        *(f"attention.self.{target}" for target in ("query", "key", "value")),
        *("attention.output.dense", "intermediate.dense", "output.dense"),
    ]
    names = {f"gradients/encoder.layer.{i}.{layer}.lora_{m}_weight" for i in (0, 1) for layer in layers for m in "AB"}
    events = read_events(monitor.run_dir)
    assert set(events.Tags()["histograms"]) == names
    assert set(events.Tags()["scalars"]) == {f"{name}_norm" for name in names}
    assert len(events.Tags()["scalars"]) == 2 * 6 * 2
