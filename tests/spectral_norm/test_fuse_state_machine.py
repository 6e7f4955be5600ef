"""Four models side by side through whatever training code does to a model, in random order.

torch's own spectral norm, ours, ours fused, and torch's fused by us, from the same numbers, have to
stay equal: outputs, gradients, weights, u and v. A second machine holds what is remembered
(``step_scoped``, ``cache_eval``) against W / sigma of the weights as they are.

The order of the rules is the same in every run. ``GANKERNELS_STATES=1000`` draws that many other
orders of each machine, and more rules in each.
"""

import contextlib
import copy
import functools
import gc
import itertools
import os
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

pytest.importorskip("hypothesis")

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support.networks import WAYS
from torch import Tensor, nn
from torch.nn.utils.spectral_norm import SpectralNorm as TorchHook
from torch.utils.checkpoint import checkpoint

from gankernels import fuse_spectral_norm

LONG = int(os.environ.get("GANKERNELS_STATES", "0"))
PROFILE = settings(
    max_examples=LONG or 12,
    stateful_step_count=40 if LONG else 25,
    derandomize=not LONG,
    deadline=None,
    database=None,
    print_blob=False,
    report_multiple_bugs=False,
)
if LONG:
    print(f"{__name__}: {PROFILE.max_examples} orders of {PROFILE.stateful_step_count} rules each")

# --- the models --------------------------------------------------------------------------------

LAYOUTS = {
    "hook": ["hook"],
    "parametrization": ["parametrization"],
    "mixed": ["hook", "parametrization", "parametrization", "hook", "parametrization"],
}


class Gate(nn.Module):
    """In the middle of a forward: raises, or waits for the other threads, when it is told to."""

    error: type[BaseException] | None = None
    barrier: threading.Barrier | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.error is not None:
            raise self.error("in the middle of a forward")
        if self.barrier is not None:
            self.barrier.wait(20)
        return x


class Inner(nn.Module):
    """What is checkpointed, and fused by itself."""

    def __init__(self, norms) -> None:
        super().__init__()
        self.one = next(norms)(nn.Linear(6, 5))
        self.two = next(norms)(nn.Linear(5, 6, bias=False))

    def forward(self, h: Tensor) -> Tensor:
        return self.two(torch.tanh(self.one(h)))


class Net(nn.Module):
    def __init__(self, norms) -> None:
        super().__init__()
        self.first = next(norms)(nn.Linear(4, 4))
        self.up = next(norms)(nn.ConvTranspose1d(2, 2, 2))  # the second dimension comes first
        self.inner = Inner(norms)
        self.gate = Gate()
        self.plain = nn.Linear(6, 6)
        self.again = next(norms)(nn.Linear(6, 6), n_power_iterations=2)
        self.branch = next(norms)(nn.Linear(6, 6))
        self.last = next(norms)(nn.Linear(6, 1))
        self.side = next(norms)(nn.Linear(4, 3))

    def forward(self, x: Tensor, branch=True, twice=False, recompute=False):
        h = torch.tanh(self.first(x)).unflatten(1, (2, 2))
        h = torch.tanh(self.up(h)).flatten(1)
        h = checkpoint(self.inner, h, use_reentrant=False) if recompute else self.inner(h)
        h = self.plain(self.gate(h))
        for _ in range(1 + twice):
            h = torch.tanh(self.again(h))
        if branch:
            h = h + self.branch(h)
        return self.last(h), self.side(x)


def build(ways: list[str], **options: Any) -> Net:
    """The same numbers, whoever normalizes."""
    torch.manual_seed(0)
    norms = itertools.cycle(WAYS[way] for way in ways)

    def norm(way, layer, n_power_iterations=1):
        return way(layer.double(), n_power_iterations=n_power_iterations, **options)

    return Net(lambda *a, way=way, **k: norm(way, *a, **k) for way in norms).double()


def plain_net() -> Net:
    return Net(itertools.repeat(lambda layer, **_: layer)).double()


def strip(model: nn.Module, everything: bool = False) -> None:
    """Drop the graph that a hook left as ``module.weight``; torch cannot copy one."""
    for module in model.modules():
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, TorchHook) and (everything or type(hook) is TorchHook):
                vars(module)[hook.name] = getattr(module, hook.name).detach()


def original(layer: nn.Module) -> Tensor:
    """The parameter before the normalization."""
    names = "weight_orig", "weight"
    for name, parameter in layer.named_parameters():
        if name in names or name.endswith("original"):
            return parameter
    raise AssertionError("no weight")


# --- optimizers --------------------------------------------------------------------------------
# Not torch.optim.Muon, which rounds to bfloat16, nor SparseAdam.

_FORMS: dict[str, dict] = {"": {}, "_foreach": {"foreach": True}, "_fused": {"fused": True}}
OPTIMIZERS: dict[str, Callable] = {}
for _name, _settings in {
    "SGD": {"momentum": 0.5},
    "Adam": {},
    "AdamW": {},
    "Adagrad": {},
    "RMSprop": {},
    "Adadelta": {},
    "Adamax": {},
    "NAdam": {},
    "RAdam": {},
    "ASGD": {},
    "Rprop": {},
    "Adafactor": {},
    "LBFGS": {"max_iter": 2},
}.items():
    for _suffix, _form in _FORMS.items():
        if _suffix and _name == "LBFGS":
            continue
        if _suffix == "_fused" and _name not in ("SGD", "Adam", "AdamW", "Adagrad"):
            continue

        OPTIMIZERS[_name + _suffix] = functools.partial(
            getattr(torch.optim, _name), lr=0.02, **_settings, **_form
        )

# --- comparing ---------------------------------------------------------------------------------


def seen(model: nn.Module) -> dict[str, Tensor | None]:
    """Everything that is to be equal, by name."""
    found: dict[str, Tensor | None] = {}
    for name, buffer in model.named_buffers():
        if "skipped" not in name:
            found[name] = buffer.detach().clone()
    for name, value in model.state_dict().items():
        found[f"state_dict: {name}"] = value.detach().clone()
    for name, parameter in model.named_parameters():
        found[f"gradient: {name}"] = None if parameter.grad is None else parameter.grad.clone()
        found[f"requires_grad: {name}"] = torch.tensor(parameter.requires_grad)
    return found


def check_same(got: dict, want: dict, what: str, rtol: float) -> None:
    assert list(got) == list(want), f"{what}: names differ"
    for name, a in got.items():
        b = want[name]
        assert (a is None) == (b is None), f"{what}, {name}: {a} and {b}"
        if a is None or torch.equal(a, b):
            continue
        assert a.shape == b.shape, f"{what}, {name}: {a.shape} and {b.shape}"
        assert a.dtype == b.dtype, f"{what}, {name}: {a.dtype} and {b.dtype}"
        torch.testing.assert_close(
            a, b, rtol=rtol, atol=rtol, equal_nan=True, msg=lambda m, n=name: f"{what}, {n}: {m}"
        )


RTOL = 1e-8


def inputs(seed: int, dtype=torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, 4, generator=generator, dtype=torch.float64).to(dtype)


class Run:
    """A model with its optimizer and the outputs that wait for a backward pass."""

    def __init__(self, model: nn.Module, fuses: bool) -> None:
        self.model = model
        self.fuses = fuses
        self.pending: list[tuple[Tensor, ...]] = []
        self.use("SGD")

    def use(self, optimizer: str) -> None:
        self.kind = optimizer
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters())

    def become(self, model: nn.Module) -> None:
        self.model = model
        self.settle()
        self.use(self.kind)

    def settle(self) -> None:
        """Forget graphs: what comes next makes them invalid."""
        self.pending = []


SEEDS = st.integers(0, 3)
FORWARD: dict[str, Any] = {
    "seed": SEEDS,
    "branch": st.booleans(),
    "twice": st.booleans(),
    "recompute": st.booleans(),
}
LAYERS = st.sampled_from(["first", "up", "inner.one", "inner.two", "again", "branch", "last"])
#: Options under which the numbers stay torch's.
FUSING = st.sampled_from([{}, {"guard": True}, {"cache_eval": True}])


class SideBySide(RuleBasedStateMachine):
    @initialize(layout=st.sampled_from(list(LAYOUTS)))
    def models(self, layout):
        kinds = LAYOUTS[layout]
        self.layout = layout
        torchs, ours = [f"torch_{k}" for k in kinds], [f"ours_{k}" for k in kinds]
        init = {"init_iterations": 0} if layout == "hook" else {}
        self.runs = {
            "torch": Run(build(torchs), False),
            "ours": Run(build(ours, **init), False),
            "ours, fused": Run(build(ours, **init), True),
            "torch's, fused": Run(build(torchs), True),
        }
        self.saved = copy.deepcopy(self.runs["torch"].model.state_dict())
        for run in self.runs.values():
            run.model.load_state_dict(self.saved)  # the parametrizations' first iterations round
            if run.fuses:
                fuse_spectral_norm(run.model)

    def each(self, act: Callable[[Run], Any]) -> None:
        """Do it to every model; what comes out has to be the same."""
        found: dict[str, dict] = {}
        for name, run in self.runs.items():
            values = act(run)
            values = [] if values is None else values
            found[name] = {str(i): None if x is None else x.detach() for i, x in enumerate(values)}
        self.compare(found)

    def compare(self, found: dict[str, dict], rtol: float = RTOL) -> None:
        check_same(found["ours"], found["torch"], "ours against torch", rtol)
        check_same(found["torch's, fused"], found["torch"], "torch's fused against torch", rtol)
        # The operators do the same to a weight in a group as alone: to the bit.
        check_same(found["ours, fused"], found["ours"], "fused against ours", 0.0)

    @invariant()
    def equal(self):
        if hasattr(self, "runs"):
            self.compare({name: seen(run.model) for name, run in self.runs.items()})

    # --- passes ---

    @rule(**FORWARD, grad_of_input=st.booleans())
    def forward(self, seed, branch, twice, recompute, grad_of_input):
        def act(run):
            x = inputs(seed).requires_grad_(grad_of_input)
            outputs = run.model(x, branch, twice, recompute)
            if any(y.requires_grad for y in outputs):
                run.pending.append((x, *outputs))
            return outputs

        self.each(act)

    @rule(seed=SEEDS, twice=st.booleans(), inference=st.booleans())
    def forward_without_gradients(self, seed, twice, inference):
        mode = torch.inference_mode if inference else torch.no_grad

        def act(run):
            with mode():
                return [y.clone() for y in run.model(inputs(seed), twice=twice)]

        self.each(act)

    @rule(seed=SEEDS)
    def gradient_of_gradient(self, seed):
        def act(run):
            x = inputs(seed).requires_grad_()
            slope = torch.autograd.grad(run.model(x)[0].sum(), x, create_graph=True)[0]
            run.pending.append((x, slope))
            return [slope]

        self.each(act)

    @rule(apart=st.booleans())
    def backward(self, apart):
        def act(run):
            grads = []
            for x, *outputs in run.pending:
                outputs = [y.square().sum() for y in outputs if y.requires_grad]
                # The two outputs have no layer in common.
                for y in outputs if apart else [sum(outputs)]:
                    y.backward()
                grads.append(x.grad)
            run.settle()
            return grads

        self.each(act)

    @rule(kind=st.sampled_from(list(OPTIMIZERS)))
    def optimizer(self, kind):
        self.each(lambda run: run.use(kind))

    @rule(seed=SEEDS, none=st.booleans())
    def step(self, seed, none):
        def act(run):
            run.settle()

            def closure():
                run.optimizer.zero_grad(set_to_none=none)
                loss = sum(y.square().sum() for y in run.model(inputs(seed)))
                if loss.requires_grad:
                    loss.backward()
                return loss

            if run.kind == "LBFGS":
                run.optimizer.step(closure)
            else:
                closure()
                run.optimizer.step()

        self.each(act)

    @rule(layer=LAYERS)
    def read_weight(self, layer):
        def act(run):
            with torch.no_grad():
                return [run.model.get_submodule(layer).weight.clone()]

        if self.layout == "parametrization":
            self.each(act)

    # --- writes and modes ---

    @rule(train=st.booleans(), where=st.sampled_from(["", "inner", "again"]))
    def mode(self, train, where):
        self.each(lambda run: run.model.get_submodule(where).train(train) and None)

    @rule(layer=LAYERS, how=st.sampled_from(["data", "new data", "in place", "set"]))
    def write(self, layer, how):
        def act(run):
            run.settle()
            weight = original(run.model.get_submodule(layer))
            with torch.no_grad():
                if how == "data":
                    weight.data.mul_(1.25).add_(0.01)
                elif how == "new data":
                    weight.data = weight.data * 0.75 - 0.01
                elif how == "in place":
                    weight.mul_(1.5).add_(0.01)
                else:
                    weight.set_(weight.detach().clone().mul_(0.9))

        self.each(act)

    @rule(layer=LAYERS, on=st.booleans())
    def requires_grad(self, layer, on):
        def act(run):
            original(run.model.get_submodule(layer)).requires_grad_(on)

        self.each(act)

    @rule(layer=LAYERS, data=st.booleans())
    def clip_in_a_hook(self, layer, data):
        """Removed again after two forwards."""

        def act(run):
            run.settle()

            @torch.no_grad()
            def shrink(module, args):
                weight = original(module)
                (weight.data if data else weight).mul_(0.97)

            handle = run.model.get_submodule(layer).register_forward_pre_hook(shrink)
            with torch.no_grad():
                outputs = [*run.model(inputs(1)), *run.model(inputs(2))]
            handle.remove()
            return outputs

        self.each(act)

    # --- states and copies ---

    @rule(of=st.sampled_from(["torch", "ours", "ours, fused", "torch's, fused"]))
    def save(self, of):
        self.saved = copy.deepcopy(self.runs[of].model.state_dict())

    @rule(assign=st.booleans(), partly=st.booleans())
    def load(self, assign, partly):
        def act(run):
            run.settle()
            state = copy.deepcopy(self.saved)
            if partly:
                # Every other entry. The hooks' loading needs a layer's entries together.
                state = {k: v for k, v in state.items() if not k.startswith(("inner", "last"))}
                state.update({f"missing.{i}": v for i, v in enumerate([torch.ones(1)])})
            if assign:
                flags = {n: p.requires_grad for n, p in run.model.named_parameters()}
            if partly and self.layout != "parametrization":
                strict = False
            else:
                strict = not partly
            run.model.load_state_dict(state, strict=strict, assign=assign)
            if assign:
                for n, p in run.model.named_parameters():
                    p.requires_grad_(flags[n])
                run.use(run.kind)

        self.each(act)

    @rule(go_on_with_copy=st.booleans())
    def deepcopy(self, go_on_with_copy):
        def act(run):
            strip(run.model)
            twin = copy.deepcopy(run.model)
            if go_on_with_copy:
                return run.become(twin)
            with torch.no_grad():
                return twin(inputs(2))

        self.each(act)

    @precondition(lambda self: self.layout == "hook")  # torch refuses to pickle the others
    @rule()
    def pickle(self):
        def act(run):
            strip(run.model)
            run.become(pickle.loads(pickle.dumps(run.model)))

        self.each(act)

    @rule(swap=st.booleans(), forward=st.booleans())
    def to_single_and_back(self, swap, forward):
        def act(run):
            run.settle()
            run.optimizer.zero_grad()
            strip(run.model, everything=True)
            with swapping(swap):
                run.model.to(torch.float32)
                if forward:
                    with torch.no_grad():
                        outputs = run.model(inputs(0, torch.float32))
                    assert all(y.dtype == torch.float32 for y in outputs)
                strip(run.model, everything=True)
                run.model.to(torch.float64)
            run.use(run.kind)

        self.each(act)
        # Rounding to float32 makes a step of what was a last digit.
        state = self.runs["torch"].model.state_dict()
        self.each(lambda run: run.model.load_state_dict(state) and None)

    @rule(swap=st.booleans())
    def load_swapping(self, swap):
        def act(run):
            run.settle()
            run.optimizer.zero_grad()
            strip(run.model, everything=True)
            with swapping(swap):
                run.model.load_state_dict(copy.deepcopy(self.saved))
            run.use(run.kind)

        self.each(act)

    @rule()
    def to_meta_and_back(self):
        def act(run):
            run.settle()
            state = copy.deepcopy(run.model.state_dict())
            run.optimizer.zero_grad()
            strip(run.model, everything=True)
            run.model.to("meta")
            run.model.to_empty(device="cpu")
            run.model.load_state_dict(state)
            run.use(run.kind)

        self.each(act)

    # --- fusing ---

    @rule(options=FUSING, where=st.sampled_from(["", "inner"]))
    def fuse(self, options, where):
        for run in self.runs.values():
            if run.fuses:
                fuse_spectral_norm(run.model.get_submodule(where), **options)

    @rule(where=st.sampled_from(["", "inner"]))
    def unfuse(self, where):
        for run in self.runs.values():
            if run.fuses:
                fuse_spectral_norm(run.model.get_submodule(where)).unfuse()

    # --- interruptions and threads ---

    @rule(error=st.sampled_from([ValueError, KeyboardInterrupt, SystemExit]), grad=st.booleans())
    def interrupted(self, error, grad):
        def act(run):
            run.model.gate.error = error
            try:
                with torch.set_grad_enabled(grad):
                    run.model(inputs(3))
            except error:
                pass
            else:
                raise AssertionError("not raised")
            finally:
                del run.model.gate.error

        self.each(act)

    @rule(seed=SEEDS)
    def submodule_alone(self, seed):
        def act(run):
            h = torch.tanh(run.model.first(inputs(seed)))
            return [h, run.model.again(torch.cat([h, h[:, :2]], 1))]

        self.each(act)

    @rule(seed=SEEDS, error=st.booleans())
    def in_another_thread(self, seed, error):
        def act(run):
            outputs = []

            def work():
                if error:
                    run.model.gate.error = ValueError
                    with contextlib.suppress(ValueError):
                        run.model(inputs(seed))
                    del run.model.gate.error
                outputs.extend(run.model(inputs(seed)))

            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
            if any(y.requires_grad for y in outputs):
                run.pending.append((inputs(seed), *outputs))
            return outputs

        self.each(act)

    @rule(seed=SEEDS)
    def threads_in_eval(self, seed):
        """All of them are in the middle of the network at the same time."""

        def act(run):
            run.model.eval()
            results: list[Any] = [None] * 3
            run.model.gate.barrier = threading.Barrier(len(results))

            def work(i):
                x = inputs(seed + i).requires_grad_()
                y = run.model(x)[0]
                results[i] = y, torch.autograd.grad(y.sum(), x)[0]

            threads = [threading.Thread(target=work, args=(i,)) for i in range(len(results))]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            del run.model.gate.barrier
            assert None not in results
            return [x for pair in results for x in pair]

        self.each(act)


@contextlib.contextmanager
def swapping(on: bool):
    if on:
        gc.collect()  # torch refuses while garbage, of a traceback perhaps, refers to weights
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(on)
    try:
        yield
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)


# --- what is remembered ------------------------------------------------------------------------


REMEMBERING = {
    "step_scoped": {"step_scoped": True},
    "cache_eval": {"cache_eval": True},
    "both": {"step_scoped": True, "cache_eval": True},
}
#: Where the options are given: to fuse_spectral_norm, or to our drop-ins.
PLACES = ["fused", "layers", "layers, fused"]


class Remembering(RuleBasedStateMachine):
    """After every forward, the weights were W / sigma of the W, u and v that are there."""

    @initialize(
        layout=st.sampled_from(list(LAYOUTS)),
        options=st.sampled_from(list(REMEMBERING)),
        place=st.sampled_from(PLACES),
    )
    def model(self, layout, options, place):
        kinds = LAYOUTS[layout]
        self.layout, self.options, self.place = layout, REMEMBERING[options], place
        given = {} if place == "fused" else self.options
        self.run = Run(build([f"ours_{k}" for k in kinds], **given), True)
        self.plain = plain_net()
        if place != "layers":
            fuse_spectral_norm(self.run.model, **self.options)
        self.saved = copy.deepcopy(self.run.model.state_dict())
        self.other = build([f"ours_{k}" for k in kinds]).state_dict()
        for i, (name, value) in enumerate(self.other.items()):
            if "weight" in name and "_u" not in name and "_v" not in name:
                self.other[name] = value * (0.5 + 0.1 * i)

    def weights(self) -> dict[str, Tensor]:
        """W / (u . W v), by hand, under the names of the same network without normalization."""
        model = self.run.model
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        found = {}
        for name in self.plain.state_dict():
            if name in tensors:
                found[name] = tensors[name]
                continue
            layer = name.removesuffix(".weight")
            if f"{name}_orig" in tensors:
                w, u, v = (tensors[name + suffix] for suffix in ("_orig", "_u", "_v"))
            else:
                stem = f"{layer}.parametrizations.weight"
                w, u, v = (tensors[f"{stem}.{part}"] for part in ("original", "0._u", "0._v"))
            matrix = (w if layer != "up" else w.transpose(0, 1)).flatten(1)
            found[name] = w / torch.dot(u.clone(), matrix @ v.clone())
        return found

    def check(self, got, x, **arguments) -> tuple[Tensor, ...]:
        want = torch.func.functional_call(self.plain, self.weights(), (x,), arguments)
        named = [{str(i): y.detach() for i, y in enumerate(ys)} for ys in (got, want)]
        check_same(*named, "against W / sigma of today", 1e-10)
        return want

    @property
    def moves_twice(self) -> bool:
        """Whether a layer that is called twice is iterated twice."""
        return "step_scoped" not in self.options and self.run.model.again.training

    @property
    def swaps(self) -> bool:
        """Whether torch swaps the weights: none that was frozen while a graph refers to it."""
        weights = [p for n, p in self.run.model.named_parameters() if "bias" not in n]
        return "step_scoped" not in self.options or all(w.requires_grad for w in weights)

    @rule(seed=SEEDS, branch=st.booleans(), twice=st.booleans(), passes=st.integers(1, 2))
    def forward_and_backward(self, seed, branch, twice, passes):
        model = self.run.model
        twice = twice and not self.moves_twice
        if "step_scoped" not in self.options:
            passes = 1  # else each has weights of its own
        parameters = [p for p in model.parameters() if p.requires_grad]
        loss: Any = 0
        right: Any = 0
        for i in range(passes):
            x = inputs(seed + i)
            got = model(x, branch, twice)
            want = self.check(got, x, branch=branch, twice=twice)
            loss = loss + sum(y.square().sum() for y in got)
            right = right + sum(y.square().sum() for y in want)
        if loss.requires_grad:
            pairs = [torch.autograd.grad(y, parameters, allow_unused=True) for y in (loss, right)]
            named = [dict(zip(map(str, range(99)), grads, strict=False)) for grads in pairs]
            check_same(*named, "gradients", 1e-9)

    @rule(seed=SEEDS, inference=st.booleans())
    def forward_without_gradients(self, seed, inference):
        with torch.inference_mode() if inference else torch.no_grad():
            self.check(self.run.model(inputs(seed)), inputs(seed))

    @precondition(lambda self: "step_scoped" in self.options)
    @rule(grad=st.booleans())
    def does_not_move_again(self, grad):
        """Between two forwards without a change or an announcement nothing moves."""
        with torch.set_grad_enabled(grad):
            self.run.model(inputs(0))
            before = [b.clone() for b in self.run.model.buffers()]
            self.run.model(inputs(1))
        assert all(map(torch.equal, before, self.run.model.buffers()))

    @rule(kind=st.sampled_from(list(OPTIMIZERS)))
    def optimizer(self, kind):
        self.run.use(kind)

    @rule(seed=SEEDS, none=st.booleans(), look=st.booleans())
    def step(self, seed, none, look):
        run = self.run

        def closure():
            run.optimizer.zero_grad(set_to_none=none)
            loss = sum(y.square().sum() for y in run.model(inputs(seed)))
            if loss.requires_grad:
                loss.backward()
            return loss

        closure()
        if look:  # as evaluations in the middle of a step do
            with torch.no_grad():
                run.model(inputs(seed))
        run.optimizer.step(closure if run.kind == "LBFGS" else None)

    @rule(layer=LAYERS, how=st.sampled_from(["data", "new data", "in place", "set", "swap back"]))
    def write(self, layer, how):
        weight = original(self.run.model.get_submodule(layer))
        with torch.no_grad():
            if how == "data":
                weight.data.mul_(1.25).add_(0.01)
            elif how == "new data":
                weight.data = weight.data * 0.75 - 0.01
            elif how == "in place":
                weight.mul_(1.5).add_(0.01)
            elif how == "set":
                weight.set_(weight.detach().clone().mul_(0.9))
            else:  # an address that comes back, with other contents
                mine = weight.data
                weight.data = mine.clone()
                mine.neg_().add_(0.02)
                weight.data = mine

    @rule(layer=LAYERS, which=st.integers(0, 1))
    def write_vectors(self, layer, which):
        buffers = list(self.run.model.get_submodule(layer).buffers())
        with torch.no_grad():
            noise = torch.linspace(-0.3, 0.3, buffers[which].numel(), dtype=torch.float64)
            buffers[which].data.add_(noise)

    @rule(train=st.booleans(), where=st.sampled_from(["", "inner", "again"]))
    def mode(self, train, where):
        self.run.model.get_submodule(where).train(train)

    @rule(layer=LAYERS, on=st.booleans())
    def requires_grad(self, layer, on):
        original(self.run.model.get_submodule(layer)).requires_grad_(on)

    @rule(other=st.booleans(), assign=st.booleans(), swap=st.booleans())
    def load(self, other, assign, swap):
        self.run.optimizer.zero_grad()
        strip(self.run.model, everything=True)
        with swapping(swap and self.swaps):
            state = copy.deepcopy(self.other if other else self.saved)
            self.run.model.load_state_dict(state, assign=assign)
        self.run.use(self.run.kind)

    @rule()
    def save(self):
        self.saved = copy.deepcopy(self.run.model.state_dict())

    @rule()
    def deepcopy(self):
        self.run.become(copy.deepcopy(self.run.model))

    @rule(swap=st.booleans())
    def to_single_and_back(self, swap):
        self.run.optimizer.zero_grad()
        strip(self.run.model, everything=True)
        with swapping(swap and self.swaps):
            self.run.model.to(torch.float32).to(torch.float64)
        self.run.use(self.run.kind)
        # Without swapping torch gives a converted parameter another accumulator of gradients, and
        # does not swap it while a graph refers to the old one: until the next forward.
        self.forward_without_gradients(0, False)

    @rule(error=st.sampled_from([ValueError, KeyboardInterrupt]))
    def interrupted(self, error):
        self.run.model.gate.error = error
        with contextlib.suppress(error):
            self.run.model(inputs(3))
        del self.run.model.gate.error

    @precondition(lambda self: self.place != "layers")
    @rule()
    def announce(self):
        fuse_spectral_norm(self.run.model, **self.options).step()

    @rule(seed=SEEDS)
    def in_another_thread(self, seed):
        outputs: list[Tensor] = []
        thread = threading.Thread(target=lambda: outputs.extend(self.run.model(inputs(seed))))
        thread.start()
        thread.join()
        self.check(outputs, inputs(seed))


@pytest.fixture(autouse=True)
def one_thread():
    """The tensors are small, and two threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


TestSideBySide = SideBySide.TestCase
TestSideBySide.settings = PROFILE
TestRemembering = Remembering.TestCase
TestRemembering.settings = PROFILE
