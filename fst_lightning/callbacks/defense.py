"""Runs a defense inside any LightningModule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from fst_lightning.defenses import Defense, HeadDefense
from fst_lightning.defenses.common.graph import leaves
from fst_lightning.modules.fit_guard import FitGuard

# By name, since `lightning` and `pytorch_lightning` have their own classes.
_SHARDING = {"FSDPStrategy", "ModelParallelStrategy", "DeepSpeedStrategy"}
_OFF_SPHERE = 1e-5  # relative; rounding stays below it


class DefenseCallback(L.Callback):
    """Purify the network of any LightningModule while its own Trainer tunes it.

    Works with ``lightning`` and ``pytorch_lightning``, any optimizer, gradient clipping and
    accumulation, bf16 and fp16, DDP, several optimizers under manual optimization, and resume. A
    penalty on the weights is added as its gradient, once per optimizer step, after gradients were
    unscaled and averaged and before they are clipped, which gives the same numbers as a part of the
    loss. (In manual optimization, step through ``self.optimizers()``; gradients that you clip
    yourself are clipped without it.)

    A second fit continues with the same reference head. A fit without a step, such as that of
    ``Tuner.lr_find``, does not change the module. The averaged weights that ``WeightAveraging`` or
    ``StochasticWeightAveraging`` put into the module at the end of a fit are projected like every
    step; checkpoints that they write before that are not.

    Args:
        defense: A defense that acts only on the weights; one with its own loss, or one that needs
            all clean images, needs a :class:`~fst_lightning.modules.PurificationModule`.
        seed: Seed of the defense's random numbers; None takes ``torch.initial_seed()``, which
            ``lightning.seed_everything`` sets.

    Raises:
        MisconfigurationException: If the defense acts on more than the weights. At the start of a
            fit: if the strategy shards weights (FSDP, model parallel, DeepSpeed), if the optimizer
            is LBFGS, if no optimizer trains the penalized weights, if nothing in front of the head
            trains although the defense is to change the features, if the head is pruned, or if
            ``fit(ckpt_path=...)`` names a checkpoint that this callback did not write.
        ValueError: If the head's weights were replaced after they were prepared, or have changed
            since the last purification.

    Example:
        >>> from fst_lightning.defenses import FineTuning
        >>> callback = DefenseCallback(FineTuning(project_norm=True))
    """

    def __init__(self, defense: Defense, seed: int | None = None) -> None:
        if defense.needs_batch:
            raise MisconfigurationException(
                f"Expected a defense that acts only on the weights, but {type(defense).__name__} "
                "has its own loss, needs all clean images, or changes gradients. Use "
                "PurificationModule(net, defense) instead."
            )
        self.defense = defense
        self.seed = seed
        self._guard = FitGuard(defense)
        self._handles: list[Any] = []
        self._num_backward = 0
        self._acted: set[int] = set()
        self._fits = False
        self._restored = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Check the Trainer and prepare the network, before its optimizers are made."""
        self._fits = stage == "fit"
        self._restored = False
        if not self._fits:
            return
        if any(cls.__name__ in _SHARDING for cls in type(trainer.strategy).__mro__):
            raise MisconfigurationException(
                f"Expected a strategy that keeps whole weights on every device, but got "
                f"{type(trainer.strategy).__name__}: the head would be a shard, and its norm and "
                "inner product wrong. Use strategy='auto' or 'ddp'."
            )
        if _overrides(pl_module, "configure_model"):
            pl_module.configure_model()
        if _overrides(pl_module, "setup") and next(pl_module.parameters(), None) is None:
            raise MisconfigurationException(
                "Expected a module with weights to prepare, but it has none yet, and its own setup "
                "runs after the callbacks'. Build the network in __init__ or configure_model."
            )
        seed = torch.initial_seed() if self.seed is None else self.seed
        self._guard.prepare(trainer, pl_module, torch.Generator().manual_seed(seed))
        self._num_backward = 0

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Move to the device and act after every step of the optimizers."""
        if trainer.ckpt_path is not None and not self._restored:
            raise MisconfigurationException(
                f"Expected fit(ckpt_path=...) to continue a run that had this callback, but "
                f"{trainer.ckpt_path} holds no state of it: its weights have just replaced the "
                "head that was prepared. To purify a checkpoint, load its weights into the module "
                "first, then call fit without ckpt_path."
            )
        if self._restored:
            self._guard.resume()
        self.defense.to(pl_module.device)
        self._refuse_pruning(trainer)
        for optimizer in trainer.optimizers:
            if isinstance(optimizer, LBFGS):
                raise MisconfigurationException(
                    "Expected an optimizer that takes one gradient per step, but got LBFGS: its "
                    "line search reads the loss, which lacks the penalty here. Use SGD or Adam, or "
                    "PurificationModule."
                )
        penalized = self._penalized()
        trained = {id(p) for optimizer in trainer.optimizers for p in _parameters(optimizer)}
        if penalized and not any(id(parameter) in trained for parameter in penalized):
            raise MisconfigurationException(
                "Expected one of the optimizers to train the weights that the defense penalizes, "
                "but none does; was the optimizer made from another part of the module?"
            )
        targets: list[Any] = penalized or self._projected() or list(pl_module.parameters())
        owned = {id(parameter) for parameter in targets}
        for optimizer in trainer.optimizers:
            if any(id(parameter) in owned for parameter in _parameters(optimizer)):
                # Right after the update, before callbacks see the weights.
                self._handles.append(optimizer.register_step_post_hook(self._after_step(trainer)))

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Check the fit, and set the modules of the defense to evaluation mode."""
        self._guard.check(trainer)
        # In each mini-batch, because a module may switch modes when an epoch starts, after the
        # callbacks, and a resumed epoch does not start again.
        for module in self.defense.always_eval():
            module.eval()

    def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Count the batches of an accumulation window."""
        self._num_backward += 1

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer
    ) -> None:
        """Add the penalty's gradient to the weights that this optimizer trains."""
        self._guard.before_step(optimizer)
        self._acted.add(id(optimizer))
        scale = self._scale(trainer, pl_module, optimizer)
        with torch.enable_grad():
            penalty = self.defense.penalty()
            # `toggle_optimizer` temporarily freezes the weights of all other optimizers.
            if penalty is None or not penalty.requires_grad:
                return
            owned = [p for p in _parameters(optimizer) if p.requires_grad and p.grad is not None]
            if not owned:
                return
            gradients = torch.autograd.grad(penalty, owned, allow_unused=True)
        for parameter, gradient in zip(owned, gradients, strict=True):
            if gradient is not None and parameter.grad is not None:
                parameter.grad.add_(gradient.to(parameter.grad.dtype), alpha=scale)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the penalty and the statistics of the defense."""
        with torch.no_grad():
            penalty = self.defense.penalty()
        if penalty is not None:
            pl_module.log("train/penalty", penalty)
        for name, value in self.defense.statistics().items():
            pl_module.log(f"train/{name}", value)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave an ordinary network."""
        self._guard.end(trainer)
        self._project_average()
        self._guard.finish()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Release the optimizers, and undo a preparation without steps."""
        self._let_go(trainer)

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Remove hooks and freezes, because Lightning skips the teardown after an exception."""
        self._let_go(trainer)

    def _let_go(self, trainer: L.Trainer) -> None:
        if self._fits:
            self._guard.close(trainer)
        self._fits = False
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def state_dict(self) -> dict[str, Any]:
        """The state for a resumed run: the original head."""
        return {"defense": {k: v.cpu() for k, v in self.defense.state_dict().items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state of the resumed run."""
        # Evaluation also restores callbacks, without a preparation.
        if self._fits:
            self.defense.load_state_dict(state_dict["defense"])
            self._restored = True

    def _penalized(self) -> list[nn.Parameter]:
        """The weights that the penalty depends on: the leaves of its graph."""
        with torch.enable_grad():
            penalty = self.defense.penalty()
        if penalty is None:
            return []
        if not penalty.requires_grad:
            raise MisconfigurationException(
                "Expected weights that train, but those that the defense penalizes are frozen "
                "(requires_grad=False)."
            )
        return leaves(penalty)

    def _projected(self) -> list[Tensor]:
        if isinstance(self.defense, HeadDefense) and self.defense.needs_head:
            return [self.defense.linear.weight]
        return []

    def _after_step(self, trainer: Any) -> Callable[..., None]:
        def project(optimizer: Optimizer, *_: Any) -> None:
            # A learning rate finder steps without the other callbacks.
            if self in trainer.callbacks and id(optimizer) not in self._acted:
                raise MisconfigurationException(
                    "Expected Lightning to step the optimizer, but it was stepped without it: the "
                    "penalty was left out. In manual optimization, call `step` on what "
                    "`self.optimizers()` returns."
                )
            self._acted.discard(id(optimizer))
            self.defense.after_step()

        return project

    def _project_average(self) -> None:
        """Project again if another callback has put averaged weights into the module."""
        if not (isinstance(self.defense, HeadDefense) and self.defense.project_norm):
            return
        norm = self.defense.linear.weight.detach().float().norm()
        kept = self.defense.original_weight.norm()
        if abs(float(norm / kept) - 1) > _OFF_SPHERE:
            self.defense.after_step()

    def _refuse_pruning(self, trainer: Any) -> None:
        """Refuse ``ModelPruning`` of the head: its weight would no longer be a parameter."""
        if not (isinstance(self.defense, HeadDefense) and self.defense.knows_head):
            return
        for callback in trainer.callbacks:
            pruned = getattr(callback, "_parameters_to_prune", None) or ()
            if any(module is self.defense.linear for module, _ in pruned):
                raise MisconfigurationException(
                    "Expected the head's weight to stay a parameter, but "
                    f"{type(callback).__name__} prunes it during the fit. Leave the head out of "
                    "`parameters_to_prune`, or prune after the purification."
                )

    def _scale(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer
    ) -> float:
        """The factor of the loss's gradient, which the penalty has to match."""
        scale = 1.0
        if pl_module.automatic_optimization:
            # Each loss was divided by the window's length, even in a short last window.
            scale = self._num_backward / trainer.accumulate_grad_batches
        self._num_backward = 0
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
            # Fused optimizers unscale inside their step, so that gradients are still scaled here.
            scale *= float(scaler.get_scale())
        return scale


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _overrides(module: nn.Module, name: str) -> bool:
    """Whether a LightningModule of either Lightning package overrides a hook."""
    for cls in type(module).__mro__:
        if name in vars(cls):
            return cls.__module__.split(".")[0] not in {"lightning", "pytorch_lightning"}
    return False
