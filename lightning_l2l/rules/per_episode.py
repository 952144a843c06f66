"""A rule whose parameters differ from episode to episode."""

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from lightning_l2l.rules.base import State, UpdateRule


class PerEpisode(UpdateRule):
    """Runs a rule with separate parameters φ_n in each of N episodes, in one batched call.

    So the antithetic pairs of an evolution strategy, or a population of rules, run side by side, and each episode gets
    a meta-gradient of its own: with gradients enabled, everything is differentiable with respect to φ_n. A rule with
    ``takes_phi_per_episode`` is called as it is, and any other by vmap over the episodes, which is slower.

    Args:
        rule: the update rule, bound to a layout where it needs one.
        phi: its parameters by name, as ``named_parameters`` gives them, each [N, ...].
    """

    def __init__(self, rule: UpdateRule, phi: dict[str, Tensor]) -> None:
        super().__init__()
        self.rule = rule
        self.sees = rule.sees
        self.phi = phi

    @classmethod
    def of_rows(cls, rule: UpdateRule, rows: Tensor) -> "PerEpisode":
        """Gives each episode the φ of its own row, laid out as ``torch.nn.utils.parameters_to_vector`` does.

        Args:
            rule: the update rule, with D parameters.
            rows: [N, D].
        """
        named = dict(rule.named_parameters())
        parts = rows.split([phi.numel() for phi in named.values()], 1)
        pairs = zip(named.items(), parts, strict=True)
        return cls(rule, {name: part.reshape(-1, *phi.shape) for (name, phi), part in pairs})

    def start(self, theta: Tensor) -> Tensor:
        if self.rule.takes_phi_per_episode:
            return self._call(self.phi, "start", theta)
        return self._map("start", theta[:, None])[:, 0]

    def init(self, theta: Tensor) -> State:
        """The states that ``rule.init`` gives for each episode, every tensor [N, ...]."""
        if self.rule.takes_phi_per_episode:
            return self._call(self.phi, "init", theta)
        return self._map("init", theta[:, None])

    def update(self, grad: Tensor, state: State, **seen: Tensor) -> tuple[Tensor, State]:
        if self.rule.takes_phi_per_episode:
            return self._call(self.phi, "update", grad, state, **seen)
        values = {name: value[:, None] for name, value in seen.items()}
        update, state = self._map("update", grad[:, None], state, **values)
        return update[:, 0], state

    def forward(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Calls a method of the rule, with the parameters that ``functional_call`` gives it."""
        return getattr(self.rule, method)(*args, **kwargs)

    def _call(self, phi: dict[str, Tensor], method: str, *args: Any, **kwargs: Any) -> Any:
        named = {f"rule.{name}": value for name, value in phi.items()}
        return torch.func.functional_call(self, named, (method, *args), kwargs)

    def _map(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Calls a method of the rule for each episode: tensors are split by their first dimension, numbers shared."""
        leaves, form = pytree.tree_flatten((args, kwargs))
        batched = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        shared: dict[int, Any] = {}
        spec: list[pytree.TreeSpec] = []

        def one(phi: dict[str, Tensor], tensors: list[Tensor]) -> list[Tensor]:
            given = iter(tensors)
            own_args, own_kwargs = pytree.tree_unflatten(
                [next(given) if isinstance(leaf, Tensor) else leaf for leaf in leaves], form
            )
            out, out_form = pytree.tree_flatten(self._call(phi, method, *own_args, **own_kwargs))
            spec[:] = [out_form]
            shared.update({place: leaf for place, leaf in enumerate(out) if not isinstance(leaf, Tensor)})
            return [leaf for leaf in out if isinstance(leaf, Tensor)]

        differentiable = torch.is_grad_enabled()
        with torch.enable_grad():  # without gradients, rules may overwrite buffers, which vmap forbids
            tensors = iter(torch.func.vmap(one, randomness="different")(self.phi, batched))
        count = spec[0].num_leaves
        out = [shared[place] if place in shared else next(tensors) for place in range(count)]
        if not differentiable:
            out = pytree.tree_map_only(Tensor, Tensor.detach, out)
        return pytree.tree_unflatten(out, spec[0])
