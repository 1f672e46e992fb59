from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F

from vision_ssm.errors import ConfigError, TrainingDiverged
from vision_ssm.tasks.classification.task import Classification
from vision_ssm.training import train
from vision_ssm.training.assembly import assemble, make_optimizer
from vision_ssm.training.config import TrainConfig
from vision_ssm.training.distributed import Processes
from vision_ssm.training.engine import Engine
from vision_ssm.training.state import read_state

Tiny = Callable[..., TrainConfig]

# No randomness but the order of the images.
PLAIN = {
    "augment.crop": "none",
    "augment.hflip": 0.0,
    "optim.name": "momentum",  # timm's name for SGD without Nesterov
    "optim.lr": 0.1,
    "schedule.name": "constant",
}


def engine(config: TrainConfig) -> Engine:
    alone = Processes(0, 1, torch.device("cpu"))
    return Engine(assemble(config, alone, resuming=False), alone)


def weights(made: Engine) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in made.model.parameters()])


def test_accumulating_is_a_larger_batch(tiny: Tiny) -> None:
    large = engine(tiny(**PLAIN, **{"data.batch_size": 16}))
    small = engine(tiny(**PLAIN, **{"optim.accumulate": 2}))
    assert (large.updates_per_epoch, small.updates_per_epoch) == (2, 3)
    streams = large.batches(), small.batches()
    for _ in range(2):
        one, other = large.update(streams[0]), small.update(streams[1])
        assert one.loss == pytest.approx(other.loss, rel=1e-5)
        assert one.grad_norm == pytest.approx(other.grad_norm, rel=1e-4)
    torch.testing.assert_close(weights(large), weights(small), rtol=1e-4, atol=1e-6)


def test_last_update_of_an_epoch_weighs_its_batches_fully(tiny: Tiny) -> None:
    made = engine(tiny(**PLAIN, **{"optim.accumulate": 2, "optim.weight_decay": 0.0, "optim.momentum": 0.0}))
    batches = made.batches()
    made.update(batches)
    made.update(batches)
    before = weights(made)
    made.model.zero_grad()
    made.parts.train.set_position(0, 4)  # the fifth of five batches
    (last,) = made.parts.train
    F.cross_entropy(made.model(last.images), last.targets).backward()
    gradient = torch.cat([parameter.grad.flatten() for parameter in made.model.parameters()])
    made.update(batches)
    torch.testing.assert_close(
        before - weights(made), 0.1 * gradient, rtol=1e-3, atol=1e-6
    )  # rounding of weights near 1
    assert float((before - weights(made)).norm()) == pytest.approx(0.1 * float(gradient.norm()), rel=1e-3)


def test_clipping_bounds_the_step_and_reports_the_norm(tiny: Tiny) -> None:
    free = engine(tiny(**PLAIN))
    clipped = engine(tiny(**PLAIN, **{"optim.clip_grad": 1e-3, "optim.weight_decay": 0.0, "optim.momentum": 0.0}))
    before = weights(clipped)
    norms = [made.update(made.batches()).grad_norm for made in (free, clipped)]
    assert norms[0] == norms[1] > 1e-3
    assert float((weights(clipped) - before).norm()) == pytest.approx(0.1 * 1e-3, rel=1e-2)


def test_layer_decay_and_weight_decay_reach_the_optimiser(tiny: Tiny) -> None:
    made = engine(tiny(**{"optim.layer_decay": 0.5, "optim.weight_decay": 0.3, "schedule.name": "constant"}))
    made.rate.set(0, 0)
    rates = {group["lr"] for group in made.optimizer.param_groups}
    assert max(rates) == pytest.approx(2e-3)
    assert min(rates) == pytest.approx(2e-3 * 0.5**3)  # embedding, two blocks, head
    groups = {
        id(parameter): group["weight_decay"] for group in made.optimizer.param_groups for parameter in group["params"]
    }
    for name, parameter in made.model.named_parameters():
        spared = parameter.ndim <= 1 or name in made.model.no_weight_decay()
        assert groups[id(parameter)] == (0.0 if spared else 0.3), name


def test_muon_takes_the_inner_matrices_only(tiny: Tiny) -> None:
    made = engine(tiny(**{"optim.name": "nmuon"}))
    assert by_muon(made.optimizer, made.model) == {
        f"blocks.{j}.mixer.{name}.weight" for j in (0, 1) for name in ("in_proj", "out_proj")
    }
    before = weights(made)
    assert math.isfinite(made.update(made.batches()).loss)
    assert not torch.equal(before, weights(made))


@pytest.mark.parametrize("name", ["vmamba_nano", "efficientvmamba_nano"])
def test_muon_leaves_stacked_parameters_of_other_families_too(tiny: Tiny, name: str) -> None:
    model = timm.create_model(name)
    made = make_optimizer(tiny(**{"optim.name": "nmuon"}), model, 1)
    taken = by_muon(made, model)
    assert taken
    assert all(name.endswith(".weight") and "head" not in name and "ssm" not in name for name in taken)


def by_muon(optimizer: torch.optim.Optimizer, model: torch.nn.Module) -> set[str]:
    by_adam = {id(p) for group in optimizer.param_groups if group.get("use_fallback") for p in group["params"]}
    return {name for name, p in model.named_parameters() if id(p) not in by_adam}


def test_average_follows_the_weights(tiny: Tiny) -> None:
    made = engine(tiny(**{"ema.decay": 0.75}))
    start = weights(made)
    made.update(made.batches())
    averaged = torch.cat([parameter.detach().flatten() for parameter in made.ema.module.parameters()])
    torch.testing.assert_close(averaged, 0.75 * start + 0.25 * weights(made))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_mixed_precision_and_gradient_checkpointing(tiny: Tiny, checkpointing: bool) -> None:
    plain = engine(tiny())
    other = engine(tiny(**{"run.amp": "bf16", "model.grad_checkpointing": checkpointing}))
    losses = [[made.update(batches).loss for _ in range(5)] for made in (plain, other) if (batches := made.batches())]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


def test_it_learns(tiny: Tiny) -> None:
    config = tiny(**{"schedule.epochs": 12, "optim.lr": 5e-3, "augment.crop": "none", "data.batch_size": 10})
    result = train(config)
    assert result.best_scores["top1"] >= 10 / 11
    epochs = [json.loads(line) for line in (config.run_folder / "log.jsonl").read_text().splitlines()]
    losses = [event["train_loss"] for event in epochs if event["event"] == "epoch_done"]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_divergence_names_the_batch_and_keeps_the_checkpoint(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    config = tiny(**{"run.checkpoint_minutes": 0.0, "optim.lr": 1e-3, "schedule.name": "constant"})
    losses, calls, seen = Classification.losses, [], []

    def broken(self: Classification, model: torch.nn.Module, batch: Any) -> dict[str, torch.Tensor]:
        calls.append(batch.indices.tolist())
        value = losses(self, model, batch)["loss"]
        if len(calls) < 4:
            return {"loss": value}
        # sqrt has an infinite slope at 0: the value stays finite, the gradient does not.
        return {"loss": value * math.nan if where == "loss" else value + (value - value.detach()).abs().sqrt()}

    monkeypatch.setattr(Classification, "losses", broken)
    with pytest.raises(
        TrainingDiverged, match=r"at update 4 \(epoch 1, learning rate 0\.001\), on the batch .*png"
    ) as it:
        train(config, on_event=seen.append)
    names = assemble(config, Processes(0, 1, torch.device("cpu")), resuming=False).files(calls[3])
    assert (it.value.files, it.value.update, it.value.learning_rate) == (names, 4, 1e-3)
    assert type(seen[-1]).__name__ == "Diverged"
    state = read_state(config.run_folder).state
    assert state["progress"]["update"] == 3
    assert all(torch.isfinite(tensor).all() for tensor in state["model"].values())


def test_notices_and_refusals_before_training(tiny: Tiny) -> None:
    made = engine(tiny(**{"data.batch_size": 64}))
    (notice,) = made.parts.notices
    assert notice == "data.batch_size is 40 instead of 64: there are only 40 training images."
    assert made.config.data.batch_size == 40
    for overrides, message in (
        ({"optim.name": "adamv"}, r"'adamv' is no optimiser that timm knows\. Did you mean 'adam"),
        ({"optim.name": "sgd", "optim.betas": [0.9, 0.9]}, r"optim\.betas does not apply to sgd"),
        ({"optim.name": "sgd", "optim.momentum": 0.0}, r"sgd refuses these optim settings: Nesterov"),
        ({"run.amp": "fp16"}, r"fp16 needs a CUDA device"),
        ({"run.device": "cuda:7"}, r"'cuda:7' is not available"),
        ({"data.path": ""}, r"no data: give a folder"),
        ({"model.name": "vim_nanoo"}, r"no model 'vim_nanoo'\. Did you mean 'vim_nano'"),
    ):
        with pytest.raises(ConfigError, match=message):
            train(tiny(**overrides))
