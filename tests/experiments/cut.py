"""Every experiment, cut short to seconds: what the tests that run all of them share."""

PICTURES = {"dataset": "small", "train_images": 15, "test_images": 6}
CUT = {  # continual backpropagation on small images: at least four commits, and replacements going on
    "slowly-changing-regression": {"steps": 480_000, "bin": 120_000, "replacement_rate": 1e-3},
    "permuted-mnist": {
        "dataset": "small",
        "tasks": 5,
        "period": 300,
        "width": 20,
        "probe": 50,
        "replacement_rate": 0.05,
    },
    "label-permutation": {
        "dataset": "small",
        "tasks": 5,
        "period": 300,
        "hidden": "[20,10]",
        "probe": 50,
        "replacement_rate": 0.05,
    },
    "random-labels": {
        "dataset": "small",
        "images": 60,
        "epochs": 40,
        "batch_size": 10,
        "tasks": 5,
        "hidden": "[16,16]",
        "maturity_threshold": 10,
        "replacement_rate": 0.05,
    },
    "continual-imagenet": {
        **PICTURES,
        "tasks": 5,
        "epochs": 20,
        "batch_size": 10,
        "channels": "[4,4,8]",
        "hidden": "[8,8]",
        "maturity_threshold": 10,
        "replacement_rate": 0.1,
    },
    "class-incremental-cifar-100": {
        **PICTURES,
        "validation_images": 5,
        "increment": 2,
        "tasks": 2,
        "epochs": 18,
        "batch": 10,
        "width": 4,
        "maturity_threshold": 5,
        "replacement_rate": 0.1,
    },
    "warm-starting": {
        **PICTURES,
        "start": "warm",
        "classes": 6,
        "epochs": 80,
        "batch": 5,
        "width": 4,
        "maturity_threshold": 5,
        "replacement_rate": 0.1,
    },
    "rewired-cart-pole": {
        "time_limit": 100,
        "tasks": 5,
        "updates": 4,
        "rollout_steps": 32,
        "copies": 4,
        "minibatch_size": 32,
        "hidden": "[8,8]",
        "maturity_threshold": 5,
        "replacement_rate": 0.1,
    },
    "slippery-ant": {
        "steps": 1280,
        "rollout_steps": 128,
        "rollouts_per_row": 2,
        "epochs": 4,
        "minibatch_size": 32,
        "hidden": "[8,8]",
        "maturity_threshold": 5,
        "replacement_rate": 0.1,
        "friction_period": 300,
    },
    "switching-markov-chain": {"period": 50, "steps": 250, "replacement_rate": 0.02},
}

LIKE = {"input-permuted-mnist": "label-permutation", "rare-context": "label-permutation"}  # the same learners


def command_of(name, **changes):
    """What follows `pliant run`: the name, and the settings above with these changes."""
    settings = {**CUT[name], **changes}
    said = [word for field, value in settings.items() for word in ("--set", f"{field}={value}")]
    return [name, "--methods", "cbp", "--seeds", "0", *said]
