from functools import cache
from math import log

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch.testing import assert_close

from pliant.experiments.switching_markov_chain import (
    Chain,
    Config,
    SwitchingMarkovChain,
    entropy,
    excess,
    fresh_network,
    gates,
)
from pliant.lab import Context

EXPERIMENT = SwitchingMarkovChain()
SHORT = {"period": 40, "steps": 120}
METHODS = {
    "bp": {},
    "cbp": {"replacement_rate": 0.04, "maturity_threshold": 10},
    "l2": {"weight_decay": 1e-3},
    "snp": {"weight_decay": 1e-3, "noise_std": 1e-3},
    "fresh": {},
}


def config(method="bp", **settings):
    return Config(method=method, **{**SHORT, **METHODS[method], **settings})


def rows_of(config, state=None):
    state = state or EXPERIMENT.start([config], Context())
    collected = []
    while any(status.word == "running" for status in state.statuses()):
        collected.append(EXPERIMENT.advance(state))
    return {name: np.concatenate([rows[name] for rows in collected]) for name in ("run", *EXPERIMENT.columns)}


straight = cache(rows_of)  # of a run that is looked at by several tests


def symbols_of(config, period, updates):
    """Seen, following and given symbols of every lane in time order, each (time, lanes)."""
    chain = Chain(config)
    rule = chain.rule(period)
    chunks = [chain.next(rule, update) for update in range(updates)]
    return [np.concatenate(each) for each in zip(*chunks, strict=True)]


# -- the stream: the facts that the page states ---------------------------------------------------------------------------


@pytest.mark.parametrize("order", [1, 2, 3])
def test_a_symbol_follows_the_rule_of_the_last_k_symbols_with_the_stated_probability(order):
    settings = Config(order=order, regularity=0.7, symbols=5)
    seen, following, given = symbols_of(settings, 0, 400)
    assert np.array_equal(seen[1:], following[:-1])
    assert (following == given).mean() == pytest.approx(0.7, abs=0.01)
    contexts = np.stack([seen[i : len(seen) - order + 1 + i] for i in range(order)]).reshape(order, -1)
    rule_of_context = {}
    for context, symbol in zip(contexts.T.tolist(), given[order - 1 :].ravel().tolist(), strict=True):
        assert rule_of_context.setdefault(tuple(context), symbol) == symbol
    assert len(rule_of_context) == 5**order


def test_strings_of_k_symbols_tell_nothing_and_are_equally_frequent():
    seen, following, _ = symbols_of(Config(order=2, symbols=4), 3, 2000)
    pairs = np.zeros((4, 4))
    np.add.at(pairs, (seen.ravel(), following.ravel()), 1)
    assert_close(torch.tensor(pairs / pairs.sum()), torch.full((4, 4), 1 / 16).double(), atol=0.002, rtol=0)


def test_symbols_that_break_the_rule_are_the_others_alike():
    _, following, given = symbols_of(Config(order=1, symbols=4, regularity=0.4), 0, 2000)
    off = (following - given).ravel() % 4
    assert_close(
        torch.tensor(np.bincount(off) / off.size), torch.tensor([0.4, 0.2, 0.2, 0.2]).double(), atol=5e-3, rtol=0
    )


def test_rules_are_looked_up_by_number_differ_and_are_permutations():
    chain, again = Chain(Config(seed=4)), Chain(Config(seed=4))
    rules = [chain.rule(number) for number in range(3)]
    assert np.array_equal(again.rule(2), rules[2])
    assert not np.array_equal(rules[0], rules[1])
    assert np.array_equal(np.sort(rules[1].reshape(8, 8), axis=1), np.tile(np.arange(8), (8, 1)))
    assert not np.array_equal(Chain(Config(seed=5)).rule(0), rules[0])


def test_the_chains_own_law_has_no_excess_and_ignorance_that_of_fewer_symbols():
    given = torch.tensor([2, 0, 3])
    law = torch.full((3, 4), 0.1 / 3)
    law[torch.arange(3), given] = 0.9
    assert_close(excess(law.log(), given, 0.9), torch.tensor(0.0), atol=1e-6, rtol=0)
    flat = torch.full((3, 4), 0.25)
    assert_close(excess(flat.log(), given, 0.9), torch.tensor(log(4) - entropy(4, 0.9)))


def test_excess_is_the_mean_cross_entropy_of_following_symbols_less_the_entropy():
    settings = Config(regularity=0.8)
    _, following, given = (torch.from_numpy(each).flatten() for each in symbols_of(settings, 0, 3000))
    log_probs = torch.randn(8, generator=torch.Generator().manual_seed(0)).log_softmax(0).expand(len(given), 8)
    cross_entropy = -log_probs.gather(1, following.unsqueeze(1)).mean()
    assert float(excess(log_probs, given, 0.8)) == pytest.approx(float(cross_entropy) - entropy(8, 0.8), abs=0.01)


# -- the network ----------------------------------------------------------------------------------------------------------


def test_the_units_of_the_gru_can_be_replaced_without_moving_the_output():
    state = EXPERIMENT.start([config("cbp")], Context())
    one_hot = torch.eye(8)[torch.randint(8, (5, 3), generator=torch.Generator().manual_seed(0))]
    (group,) = state.method.groups
    assert (group.spec.kind, group.units) == ("recurrent", 32)
    (verdict,) = state.method.plan.verify(state.network, one_hot).rows
    assert (verdict.verdict, verdict.moved) == ("exact", 0)
    assert verdict.alive == 1


def test_gates_are_those_that_the_gru_used():
    network = fresh_network(Config(), 0)
    core, (one_hot, before) = network.core, (torch.eye(8), torch.randn(8, 32).tanh())
    reset, update = gates(core, one_hot, before).chunk(2, dim=1)
    new = (one_hot @ core.weight_ih_l0.T + core.bias_ih_l0)[:, 64:]
    new = torch.tanh(new + reset * (before @ core.weight_hh_l0.T + core.bias_hh_l0)[:, 64:])
    network(one_hot.unsqueeze(0), before.unsqueeze(0))
    assert_close(network.hidden[0], ((1 - update) * new + update * before).detach())


def test_the_hidden_state_is_carried_from_chunk_to_chunk_and_starts_anew_with_a_fresh_network():
    for method, carried in (("bp", True), ("fresh", False)):
        state = EXPERIMENT.start([config(method)], Context())
        for _ in range(2):
            before = state.carried
            state.learn(20)
            assert not torch.equal(state.carried, before)
        weights = state.network.core.weight_ih_l0
        state.learn(1)
        assert (state.network.core.weight_ih_l0 is weights) == carried
        zeros = torch.zeros_like(state.carried)
        again = fresh_network(state.config, 1)
        again(torch.eye(8)[state.seen], zeros)
        assert torch.equal(again.hidden, state.network.hidden) != carried


# -- the runs -------------------------------------------------------------------------------------------------------------


def test_the_network_learns_what_no_shorter_memory_could():
    rows = rows_of(config(period=400, steps=400))
    ignorance = log(8) - entropy(8, 0.8)
    assert rows["excess_early"][0] == pytest.approx(ignorance, abs=0.1)
    assert rows["excess_late"][0] < ignorance / 4


def test_every_switch_undoes_what_was_learned():
    rows = rows_of(config(period=200, steps=600))
    assert (rows["excess_early"] > rows["excess_late"] + 0.3).all()


def test_all_methods_of_a_seed_see_the_same_symbols_from_the_same_weights():
    first = {method: straight(config(method))["excess_early"][0] for method in METHODS}
    assert first["bp"] == first["cbp"] == first["fresh"]
    assert max(abs(value - first["bp"]) for value in first.values()) < 1e-3
    assert rows_of(config(seed=1))["excess_early"][0] != first["bp"]


def test_a_run_depends_on_its_config_alone():
    expected = straight(config("cbp"))
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    found = rows_of(config("cbp"))
    rows_of(config("snp"))
    assert torch.equal(torch.random.get_rng_state(), before), "the global random state was touched"
    assert expected["replaced"][-1] >= 20
    for name, values in expected.items():
        assert np.array_equal(found[name], values)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("method", METHODS)
def test_stopping_in_mid_period_and_resuming_changes_nothing(method, optimizer):
    run = config(method, optimizer=optimizer)
    expected = straight(run)
    assert expected["switch"].tolist() == [1, 2, 3]
    state = EXPERIMENT.start([run], Context())
    state.learn(40)
    assert not state.learn(25)
    resumed = EXPERIMENT.start([run], Context())
    resumed.load_state_dict(state.state_dict())
    EXPERIMENT.advance(state)  # what was saved must not follow
    rows = rows_of(run, resumed)
    assert method != "cbp" or expected["replaced"][-1] - expected["replaced"][0] >= 20
    for name, values in rows.items():
        assert np.array_equal(values, expected[name][1:])


def test_continual_backprop_replaces_units_on_schedule_and_backprop_none():
    replaced = straight(config("cbp"))["replaced"]
    assert replaced.tolist() == sorted(replaced)
    assert 20 <= replaced[-1] <= 0.04 * 32 * 120
    assert not straight(config())["replaced"].any()


def test_a_long_period_is_learned_in_pieces_and_makes_one_row(monkeypatch):
    whole = straight(config())
    monkeypatch.setattr("pliant.experiments.switching_markov_chain.UPDATES_PER_ADVANCE", 25)
    pieces = rows_of(config())
    for name, values in whole.items():
        assert np.array_equal(pieces[name], values)
        assert pieces[name].dtype == values.dtype


def test_a_diverged_run_is_a_result():
    state = EXPERIMENT.start([config(optimizer="sgd", step_size=1e38)], Context())
    rows = EXPERIMENT.advance(state)
    (status,) = state.statuses()
    assert status.word == "diverged"
    assert status.step == state.steps_done - 1 < 40
    assert np.isnan(rows["excess"]).all()
    assert len(rows["excess"]) == 1


# -- profiles and settings ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", EXPERIMENT.profiles)
def test_profiles_compare_methods_on_the_same_seeds(profile):
    configs = EXPERIMENT.runs(profile)
    assert len(configs) == len(set(configs))
    seeds = {
        seed: {c.model_copy(update={"seed": 0}) for c in configs if c.seed == seed}
        for seed in {c.seed for c in configs}
    }
    assert all(cells == seeds[min(seeds)] for cells in seeds.values())
    assert all(seed >= 1000 for seed in seeds) == (profile == "tuning")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"period": 70}, r"steps .120. must be a multiple of period .70."),
        ({"replacement_rate": 1e-3}, "replacement_rate is for method cbp, not bp: add --methods cbp"),
        ({"weight_decay": 1e-3}, "weight_decay is for method l2 or snp, not bp"),
        ({"method": "cbp"}, "method cbp needs replacement_rate > 0"),
        ({"method": "snp", "weight_decay": 1e-3}, "method snp needs noise_std > 0"),
        ({"method": "l2"}, "method l2 needs weight_decay > 0"),
        ({"optimizer": "sgd", "beta1": 0.99}, "beta1 and beta2 are for optimizer adam, not sgd"),
        ({"regularity": 1.0}, "less than 1"),
        ({"rate": 1}, "Extra inputs are not permitted"),
    ],
)
def test_settings_that_contradict_each_other_are_errors(settings, message):
    with pytest.raises(ValidationError, match=message):
        Config(**{**SHORT, **settings})


def test_the_figure_has_a_row_of_panels_for_each_optimizer():
    pandas = pytest.importorskip("pandas")
    tables = []
    for optimizer, method, seed in [("adam", "bp", 0), ("adam", "bp", 1), ("adam", "cbp", 0), ("sgd", "bp", 0)]:
        run = config(method, optimizer=optimizer, seed=seed, period=20, steps=60)
        tables.append(pandas.DataFrame(rows_of(run)).assign(**run.model_dump()))
    figure = EXPERIMENT.figure(pandas.concat(tables))
    assert [axes.get_title(loc="left") for axes in figure.axes[::4]] == ["GRU, adam", "GRU, sgd"]
    assert figure.axes[0].get_ylabel() == "excess, nats per symbol"
    assert {text.get_text() for text in figure.axes[3].texts} == {"backprop", "cbp"}
