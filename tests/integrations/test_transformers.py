"""Methods inside the Trainer of Transformers. In the environment of `make integrations`."""

import copy
import os
import shutil
import signal

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset, IterableDataset

pytest.importorskip("transformers", reason="Transformers is not installed: make integrations")
pytest.importorskip("accelerate", reason="Accelerate is not installed: make integrations")

from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

import pliant
from pliant.integrations.transformers import (
    ContinualBackpropCallback,
    MethodCallback,
    PlasticityMonitorCallback,
    UnitResetCallback,
)
from tests.integrations.killed import (
    METHODS,
    OFTEN,
    data,
    differing,
    done,
    hooks,
    kill,
    leave,
    process,
    ranks,
    replaced,
    same_end,
)

pytestmark = [pytest.mark.integrations, pytest.mark.filterwarnings("ignore")]


class Rows(Dataset):
    def __init__(self, *columns, names=("x", "labels")):
        self.columns, self.names = columns, names

    def __len__(self):
        return len(self.columns[0])

    def __getitem__(self, number):
        return {name: column[number] for name, column in zip(self.names, self.columns, strict=True)}


class Net(nn.Module):
    """Two hidden layers, dropout, and a loss as a Trainer wants it."""

    def __init__(self, hidden=16):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, hidden), nn.Linear(hidden, 12), nn.Linear(12, 3)

    def forward(self, x, labels=None):
        hidden = torch.tanh(self.second(torch.relu(self.first(x))))
        logits = self.head(nn.functional.dropout(hidden, 0.1, self.training))
        return (
            {"loss": cross_entropy(logits.float(), labels), "logits": logits}
            if labels is not None
            else {"logits": logits}
        )


class KillAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **others):
        if state.global_step == self.step:
            kill()


HOW = {
    "plain": {},
    "accumulated": {"gradient_accumulation_steps": 2, "num_train_epochs": 12},
    "warmup": {"warmup_steps": 20, "lr_scheduler_type": "cosine", "weight_decay": 0.01},
    "bf16": {"bf16": True},
    "adafactor": {"optim": "adafactor"},
    "compiled": {"torch_compile": True},
}


def arguments(folder, **settings):
    quiet = {
        "report_to": "none",
        "disable_tqdm": True,
        "logging_strategy": "no",
        "use_cpu": True,
        "dataloader_pin_memory": False,
    }
    usual = {"per_device_train_batch_size": 8, "num_train_epochs": 8, "learning_rate": 0.01, "save_strategy": "steps"}
    return TrainingArguments(str(folder), save_steps=10, **{**quiet, **usual, **settings})


def train(how, method, folder, *, kill_at=None, resume=False):
    """Train, and leave the end in a file."""
    torch.set_num_threads(1)
    set_seed(0)
    model = Net()
    maker, settings = METHODS[method]
    callback = MethodCallback(maker, **settings)
    at_step = [] if kill_at is None else [KillAt(kill_at)]
    trainer = Trainer(model, arguments(folder, **HOW[how]), train_dataset=Rows(*data()), callbacks=[callback, *at_step])
    trainer.train(resume_from_checkpoint=resume)
    leave(folder, model, callback.method)
    return callback, model


@pytest.mark.parametrize(
    ("how", "method"),
    [
        *((how, "continual backprop") for how in HOW),
        *(("plain", each) for each in METHODS if each != "continual backprop"),
    ],
)
def test_killed_and_resumed_it_ends_as_if_nothing_had_happened(how, method, tmp_path):
    """Shuffled batches and dropout included, in the middle of an epoch."""
    callback, _ = train(how, method, tmp_path / "straight")
    assert done(callback.method)
    killed = tmp_path / "killed"
    assert process("test_transformers", f"train({how!r}, {method!r}, {str(killed)!r}, kill_at=37)") == -signal.SIGKILL
    assert (killed / "checkpoint-30" / f"pliant-{METHODS[method][0].__name__}.pt").exists()
    assert not (killed / "end.pt").exists()
    assert process("test_transformers", f"train({how!r}, {method!r}, {str(killed)!r}, resume=True)") == 0
    assert same_end(tmp_path / "straight", killed)


# -- attached while it trains, and no longer ---------------------------------------------------------------------------------


def trainer(folder, *callbacks, model=None, rows=None, **settings):
    settings = {"save_strategy": "no", "num_train_epochs": 2, **settings}
    rows = Rows(*data()) if rows is None else rows
    return Trainer(model or Net(), arguments(folder, **settings), train_dataset=rows, callbacks=list(callbacks))


def steps(callback):
    (found,) = {group["steps"] for group in callback.method.stats().values()}
    return found


def test_after_training_no_hook_is_left_and_the_method_tells_what_it_did(tmp_path):
    callback = ContinualBackpropCallback(**OFTEN)
    assert callback.method is None
    training = trainer(tmp_path, callback, num_train_epochs=10)
    training.train()
    assert replaced(callback.method) >= 20
    assert hooks(training.model, training.optimizer.optimizer) == 0


@pytest.mark.parametrize(("how", "expected"), [("plain", 16), ("accumulated", 8), ("bf16", 16)])
def test_its_clock_is_the_optimizer_step(how, expected, tmp_path):
    callback = ContinualBackpropCallback(**OFTEN)
    trainer(tmp_path, callback, **{**HOW[how], "num_train_epochs": 2}).train()
    assert steps(callback) == expected


class Fail(TrainerCallback):
    def on_step_end(self, args, state, control, **others):
        raise ArithmeticError("in the middle")


def test_a_training_that_raises_is_detached_by_the_next_and_goes_on(tmp_path):
    callback, fail = ContinualBackpropCallback(**OFTEN), Fail()
    training = trainer(tmp_path, callback, fail)
    with pytest.raises(ArithmeticError):
        training.train()
    training.remove_callback(fail)
    training.train()
    assert steps(callback) == 1 + 16
    assert hooks(training.model, training.optimizer.optimizer) == 0


def test_evaluation_is_not_recorded(tmp_path):
    callback, seen = ContinualBackpropCallback(**OFTEN), []

    class Look(TrainerCallback):
        def on_evaluate(self, args, state, control, **others):
            seen.append(sum(callback.method.recorded().values()))

    settings = arguments(tmp_path, eval_strategy="steps", eval_steps=4, num_train_epochs=2, save_strategy="no")
    rows = Rows(*data())
    Trainer(Net(), settings, train_dataset=rows, eval_dataset=rows, callbacks=[callback, Look()]).train()
    assert seen == [0] * 4


def test_it_disturbs_no_random_number(tmp_path):
    """At rate 0 training ends as without a callback, shuffled, with dropout, and with a collator that draws."""

    def collate(rows):
        x = torch.stack([row["x"] for row in rows])
        return {"x": x + 0.1 * torch.randn_like(x), "labels": torch.stack([row["labels"] for row in rows])}

    ends = []
    for callbacks in ([], [ContinualBackpropCallback(replacement_rate=0.0)], [MethodCallback(pliant.L2, strength=0.0)]):
        set_seed(0)
        training = trainer(tmp_path, *callbacks)
        training.data_collator = collate
        training.train()
        ends.append(training.model.state_dict())
    assert differing(ends[0], ends[1]) == differing(ends[0], ends[2]) == []


TINY = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "vocab_size": 40, "intermediate_size": 24}
MODELS = {
    "bert": lambda: BertForSequenceClassification(BertConfig(**TINY, num_labels=2)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=16, n_head=2, vocab_size=40, n_inner=24)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**TINY)),
}


@pytest.mark.parametrize("name", MODELS)
def test_models_of_transformers(name, tmp_path):
    set_seed(0)
    tokens = torch.randint(40, (32, 7))
    labels = tokens[:, 0] % 2 if name == "bert" else tokens
    rows = Rows(tokens, torch.ones_like(tokens), labels, names=("input_ids", "attention_mask", "labels"))
    callback = ContinualBackpropCallback(mask="attention_mask", **OFTEN)
    trainer(tmp_path, callback, model=MODELS[name](), rows=rows, num_train_epochs=10).train()
    assert len(callback.method.stats()) == (3 if name == "bert" else 2)
    assert replaced(callback.method) >= 20


def train_a_rank(folder):
    torch.set_num_threads(1)
    set_seed(0)
    callback = ContinualBackpropCallback(**OFTEN)
    settings = {"num_train_epochs": 12, "per_device_train_batch_size": 4, "ddp_backend": "gloo"}
    training = trainer(folder, callback, **settings)
    training.train()
    assert training.args.world_size == 2
    assert replaced(callback.method) >= 20
    torch.save(training.model.state_dict(), f"{folder}/{training.args.process_index}.pt")


def test_two_ranks_replace_the_same_units_and_stay_equal_to_the_bit(tmp_path):
    ranks("test_transformers", f"train_a_rank({str(tmp_path)!r})")
    assert differing(*(torch.load(tmp_path / f"{rank}.pt") for rank in range(2))) == []


def test_a_monitor_measures(tmp_path):
    callback = PlasticityMonitorCallback(every=5, to=tmp_path / "measures.csv")
    trainer(tmp_path, callback, ContinualBackpropCallback(**OFTEN)).train()
    assert [row["step"] for row in callback.method.rows if row["group"] == "first"] == [1, 5, 10, 15]
    assert (tmp_path / "measures.csv").read_text().count("\n") == 1 + 2 * 4


def test_several_methods_at_once_are_saved_apart(tmp_path):
    several = [
        ContinualBackpropCallback(include="first", **OFTEN),
        ContinualBackpropCallback(include="second", name="second", **OFTEN),
        MethodCallback(pliant.L2, strength=0.01),
        UnitResetCallback(pliant.ReDo),
    ]
    trainer(tmp_path, *several, save_strategy="steps").train()
    names = {path.name for path in (tmp_path / "checkpoint-10").glob("pliant-*")}
    assert names == {f"pliant-{name}.pt" for name in ("ContinualBackprop", "second", "L2", "ReDo")}


def test_two_callbacks_of_one_name_are_refused(tmp_path):
    first, second = (MethodCallback(pliant.L2, strength=0.01, parameters=name) for name in ("first.*", "second.*"))
    with pytest.raises(
        ValueError, match=r"two callbacks of this Trainer are named 'L2'.*MethodCallback\(\.\.\., name="
    ):
        trainer(tmp_path, first, second).train()


def test_a_new_model_of_model_init_begins_anew(tmp_path):
    callback = ContinualBackpropCallback(**OFTEN)
    settings = arguments(tmp_path, save_strategy="no", num_train_epochs=2)
    training = Trainer(model_init=lambda: Net(), args=settings, train_dataset=Rows(*data()), callbacks=[callback])
    for _ in range(2):
        training.train()
        assert steps(callback) == 16


def test_in_a_search_over_hyperparameters_the_state_is_in_the_folder_of_the_run(tmp_path):
    callback = ContinualBackpropCallback(**OFTEN)
    training = trainer(tmp_path, callback)
    training.train()
    training.state.is_hyper_param_search = True
    for run in (0, 1):
        (tmp_path / f"run-{run}" / "checkpoint-16").mkdir(parents=True)
        os.utime(tmp_path / f"run-{run}" / "checkpoint-16", (run, run))
    callback.on_save(training.args, training.state, training.control)
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("pliant-*")] == [
        "run-1/checkpoint-16/pliant-ContinualBackprop.pt"
    ]


# -- what does not fit -------------------------------------------------------------------------------------------------------


class Stream(IterableDataset):
    def __iter__(self):
        return iter([Rows(*data())[number] for number in range(64)])


def test_a_set_without_rows_needs_an_example(tmp_path):
    with pytest.raises(ValueError, match=r"the training set, a Stream, has no rows .* example_inputs="):
        trainer(tmp_path, ContinualBackpropCallback(**OFTEN), rows=Stream(), max_steps=4).train()
    callback = ContinualBackpropCallback(example_inputs={"x": torch.zeros(2, 6)}, **OFTEN)
    trainer(tmp_path, callback, rows=Stream(), max_steps=4).train()
    assert steps(callback) == 4


def frozen():
    return Net().requires_grad_(False)


def test_deepspeed_is_refused(tmp_path):
    callback = ContinualBackpropCallback(**OFTEN)
    training = trainer(tmp_path, callback)
    training.args.deepspeed = "settings.json"
    with pytest.raises(ValueError, match="DeepSpeed shards parameters"):
        callback.on_train_begin(
            training.args, training.state, training.control, model=training.model, optimizer=None, train_dataloader=None
        )


def test_a_frozen_model_is_refused(tmp_path):
    model = frozen()
    before = copy.deepcopy(model.state_dict())
    training = trainer(tmp_path, ContinualBackpropCallback(**OFTEN), model=model)
    with pytest.raises((ValueError, TypeError), match=r"frozen|train"):
        training.train()
    assert hooks(model) == 0
    assert differing(before, model.state_dict()) == []


def test_an_optimizer_of_another_model_is_refused(tmp_path):
    other = torch.optim.SGD(nn.Linear(3, 3).parameters(), lr=0.1)
    training = trainer(tmp_path, ContinualBackpropCallback(**OFTEN))
    training.optimizer = other
    with pytest.raises(ValueError, match="Pass the optimizer that was built from this model's parameters"):
        training.train()
    assert hooks(training.model, other) == 0


def saved(folder, callback=None, **settings):
    trainer(folder, *filter(None, [callback]), save_strategy="steps", **settings).train()


def resumed(folder, callback, **settings):
    trainer(folder, callback, save_strategy="steps", **settings).train(
        resume_from_checkpoint=str(folder / "checkpoint-10")
    )


def test_a_checkpoint_without_the_state_is_refused(tmp_path):
    saved(tmp_path)
    with pytest.raises(
        ValueError, match=r"checkpoint-10/pliant-ContinualBackprop\.pt is not there, and training goes on at step 10"
    ):
        resumed(tmp_path, ContinualBackpropCallback(**OFTEN))


def test_a_method_may_begin_at_a_checkpoint_that_was_saved_without_it(tmp_path):
    saved(tmp_path)
    callback = ContinualBackpropCallback(resume=False, **OFTEN)
    resumed(tmp_path, callback)
    assert steps(callback) == 6


def test_a_checkpoint_of_other_units_is_refused(tmp_path):
    saved(tmp_path, ContinualBackpropCallback(**OFTEN))
    with pytest.raises(ValueError, match="saved for other units"):
        resumed(tmp_path, ContinualBackpropCallback(exclude="second", **OFTEN))


def test_a_checkpoint_elsewhere_is_named_with_resume(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    saved(first, ContinualBackpropCallback(**OFTEN), logging_strategy="steps", logging_steps=1)
    saved(second, ContinualBackpropCallback(**OFTEN), logging_strategy="steps", logging_steps=1, learning_rate=0.02)

    def go_on(**settings):
        callback = ContinualBackpropCallback(**settings, **OFTEN)
        training = trainer(second, callback, num_train_epochs=4)
        training.train(resume_from_checkpoint=str(first / "checkpoint-10"))
        return callback

    with pytest.raises(ValueError, match=r"second/checkpoint-10 is of another run.*resume=folder"):
        go_on()
    assert steps(go_on(resume=first / "checkpoint-10")) == 32
    shutil.rmtree(second)
    with pytest.raises(ValueError, match="is not there"):
        go_on()


def test_a_damaged_state_is_refused(tmp_path):
    saved(tmp_path, ContinualBackpropCallback(**OFTEN))
    (tmp_path / "checkpoint-10" / "pliant-ContinualBackprop.pt").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="is damaged, or no saved state"):
        resumed(tmp_path, ContinualBackpropCallback(**OFTEN))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ContinualBackpropCallback(replacement_rat=0.1), "did you mean 'replacement_rate'"),
        (lambda: ContinualBackpropCallback(example_inputs=lambda: None), "example_inputs is called with 1 argument"),
        (lambda: ContinualBackpropCallback(name=3), "name must be a text, got 3"),
        (lambda: MethodCallback(pliant.L2), "strength"),
        (
            lambda: MethodCallback(pliant.ReDo, resume=True),
            "resume is the folder of a checkpoint, False or None, got True",
        ),
    ],
)
def test_bad_settings_are_refused_at_construction(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()


def test_a_version_that_it_is_not_tested_with_is_refused(monkeypatch):
    monkeypatch.setattr("pliant.base.install.version", lambda package: "4.57.1")
    with pytest.raises(RuntimeError, match=r"transformers 4\.57\.1 is installed, and .*transformers>=5,<6"):
        ContinualBackpropCallback(**OFTEN)
