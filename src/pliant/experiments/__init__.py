"""The experiments by short name. Only the command line reads this table; nothing heavy is imported for it.

A test holds it to the classes: the same methods, the same profiles.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Entry:
    """An experiment, as `pliant list` shows it."""

    target: str  # module:Class
    question: str
    methods: tuple[str, ...]
    profiles: tuple[str, ...]
    renamed: Mapping[str, str] = field(
        default_factory=dict[str, str]
    )  # fields in the version before, and now: in old exports


_AGENTS = {"beta_1": "beta1", "beta_2": "beta2"}
_WALKERS = {**_AGENTS, "stretch": "rollouts_per_row"}

TABLE: dict[str, Entry] = {
    "slowly-changing-regression": Entry(
        target="pliant.experiments.slowly_changing_regression:SlowlyChangingRegression",
        question="does a small network go on fitting a target that drifts?",
        methods=("bp", "cbp", "linear", "l2", "snp", "l2init", "random", "fresh"),
        profiles=("quick", "small", "tuning", "paper"),
    ),
    "permuted-mnist": Entry(
        target="pliant.experiments.permuted_mnist:PermutedMnist",
        question="is the 800th permutation of the pixels learned as well as the first, online?",
        methods=("bp", "adam", "l2", "snp", "dropout", "onlinenorm", "layernorm", "cbp", "linear"),
        profiles=("quick", "small", "medium", "tuning", "paper"),
    ),
    "input-permuted-mnist": Entry(
        target="pliant.experiments.input_permuted_mnist:InputPermutedMnist",
        question="is the 200th order of the pixels learned from 5,000 images as fast as the first?",
        methods=("bp", "l2", "l2init", "snp", "layernorm", "upgd", "cbp", "random", "linear", "fresh"),
        profiles=("quick", "small", "paper"),
    ),
    "label-permutation": Entry(
        target="pliant.experiments.label_permutation:LabelPermutation",
        question="when the names of 47 classes change but the images do not, is what was learned used?",
        methods=("bp", "l2", "l2init", "snp", "layernorm", "upgd", "cbp", "random", "linear", "fresh"),
        profiles=("quick", "small", "tuning", "paper"),
    ),
    "rare-context": Entry(
        target="pliant.experiments.rare_context:RareContext",
        question="is what is needed at one example in a hundred kept while the rest of the stream changes?",
        methods=("bp", "l2", "l2init", "snp", "layernorm", "upgd", "cbp", "random", "linear", "fresh"),
        profiles=("quick", "small", "paper"),
    ),
    "random-labels": Entry(
        target="pliant.experiments.random_labels:RandomLabels",
        question="is the 50th set of meaningless labels memorized as well as the first?",
        methods=("bp", "l2", "l2init", "snp", "cbp", "random", "fresh"),
        profiles=("quick", "small", "paper"),
    ),
    "continual-imagenet": Entry(
        target="pliant.experiments.continual_imagenet:ContinualImageNet",
        question="is the 2,000th pair of classes learned as well as the first?",
        methods=("bp", "l2", "snp", "cbp", "fresh"),
        profiles=("quick", "small", "tuning", "paper"),
    ),
    "class-incremental-cifar-100": Entry(
        target="pliant.experiments.class_incremental:ClassIncremental",
        question="does a network that is given new classes learn them as well as one that starts over?",
        methods=("bp", "cbp", "head", "full", "snp"),
        profiles=("quick", "medium", "tuning", "paper"),
    ),
    "warm-starting": Entry(
        target="pliant.experiments.warm_starting:WarmStarting",
        question="does a network that has learned half of the data end as well as one that meets all of it fresh?",
        methods=("bp", "cbp", "snp"),
        profiles=("quick", "small", "tuning", "paper"),
    ),
    "switching-markov-chain": Entry(
        target="pliant.experiments.switching_markov_chain:SwitchingMarkovChain",
        question="does a recurrent network go on learning when the rule of its sequence is redrawn, again and again?",
        methods=("bp", "cbp", "l2", "snp", "fresh"),
        profiles=("quick", "small", "tuning"),
        renamed={"beta_1": "beta1", "beta_2": "beta2", "lanes": "sequences"},
    ),
    "rewired-cart-pole": Entry(
        target="pliant.experiments.rewired_cart_pole:RewiredCartPole",
        question="does an agent learn its 50th task as well as its first, when its sensors are re-wired again and again?",
        methods=("ppo", "tuned-adam", "l2", "cbp", "redo", "fresh"),
        profiles=("quick", "small", "tuning"),
        renamed=_AGENTS,
    ),
    "slippery-ant": Entry(
        target="pliant.experiments.locomotion:SlipperyAnt",
        question="does an agent go on learning to walk when friction changes, again and again?",
        methods=("ppo", "tuned-adam", "l2", "cbp", "redo", "fresh"),
        profiles=("quick", "small", "paper"),
        renamed=_WALKERS,
    ),
    "slippery-cheetah": Entry(
        target="pliant.experiments.locomotion:SlipperyCheetah",
        question="the same, in a body that is cheaper to simulate",
        methods=("ppo", "tuned-adam", "l2", "cbp", "redo", "fresh"),
        profiles=("quick", "small", "paper"),
        renamed=_WALKERS,
    ),
    "ant": Entry(
        target="pliant.experiments.locomotion:Ant",
        question="does an agent go on improving for 50 million steps of one environment?",
        methods=("ppo", "tuned-adam", "l2", "cbp", "redo"),
        profiles=("quick", "paper"),
        renamed=_WALKERS,
    ),
    "hopper": Entry(
        target="pliant.experiments.locomotion:Hopper",
        question="the same, on one leg",
        methods=("ppo", "tuned-adam", "l2", "cbp", "redo"),
        profiles=("quick", "paper"),
        renamed=_WALKERS,
    ),
    "walker2d": Entry(
        target="pliant.experiments.locomotion:Walker2d",
        question="the same, on two legs",
        methods=("ppo", "tuned-adam", "l2", "cbp", "redo"),
        profiles=("quick", "paper"),
        renamed=_WALKERS,
    ),
}
