"""Other people's networks, and for each what a reader of its code expects to be found.

`hidden` names (by pattern) the weights that are units by default: MLP layers of transformers, inner convolutions of
residual blocks, every convolution of a network without shortcuts. What writes a residual stream, attention, embeddings and the
output layer are not among them. `groups` is the least number of groups, counted from the architecture.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from tests.units.hard_cases import CASES, Case, Net
from tests.zoo.torchvision_names import torchvision_names


@dataclass(frozen=True)
class Model:
    """One row of the zoo. A pattern that starts with "!" takes names out again."""

    name: str
    source: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], Any]
    hidden: tuple[str, ...]
    groups: int
    options: dict[str, bool] = field(default_factory=dict)

    def make(self) -> tuple[nn.Module, Any]:
        torch.manual_seed(0)
        return self.build(), self.inputs()

    def is_hidden(self, name: str) -> bool:
        wanted = any(fnmatchcase(name, pattern) for pattern in self.hidden if not pattern.startswith("!"))
        return wanted and not any(fnmatchcase(name, pattern[1:]) for pattern in self.hidden if pattern.startswith("!"))


# -- transformers: real architectures from small configurations --------------------------------------------------------

SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 40,
    "max_position_embeddings": 20,
}
ENCODER = {**SIZES, "pad_token_id": 0}
DECODER = {**SIZES, "use_cache": False, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GROUPED = {**DECODER, "num_key_value_heads": 1, "head_dim": 8}
SHORT_NAMES = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16}
PICTURES = {
    **{name: size for name, size in SIZES.items() if name not in ("vocab_size", "max_position_embeddings")},
    "image_size": 32,
    "patch_size": 8,
}
BOTH_SIDES = {
    "d_model": 16,
    **{
        f"{side}_{what}": size
        for side in ("encoder", "decoder")
        for what, size in (("layers", 2), ("attention_heads", 2))
    },
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    **{name: DECODER[name] for name in ("vocab_size", "use_cache", "pad_token_id", "bos_token_id", "eos_token_id")},
    "decoder_start_token_id": 1,
}
SPEECH = {
    **{name: size for name, size in SIZES.items() if name != "max_position_embeddings"},
    "conv_dim": (8, 8),
    "conv_kernel": (4, 3),
    "conv_stride": (2, 2),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "apply_spec_augment": False,
    "classifier_proj_size": 12,
}


def words() -> dict[str, torch.Tensor]:
    return {"input_ids": torch.randint(3, 40, (2, 6))}


def words_to_words() -> dict[str, torch.Tensor]:
    return {**words(), "decoder_input_ids": torch.randint(3, 40, (2, 4))}


def pixels() -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.randn(2, 3, 32, 32)}


def sound() -> dict[str, torch.Tensor]:
    return {"input_values": torch.randn(2, 64)}


def mel_to_words() -> dict[str, torch.Tensor]:
    return {"input_features": torch.randn(2, 8, 20), "decoder_input_ids": torch.randint(3, 40, (2, 4))}


def from_transformers() -> Iterator[Model]:
    import transformers

    tasks = {
        words: "SequenceClassification",
        words_to_words: "Seq2SeqLM",
        pixels: "ImageClassification",
        sound: "AudioClassification",
        mel_to_words: "SpeechSeq2Seq",
    }

    def model(
        name: str, hidden: str, groups: int, config: dict[str, Any], inputs: Any = words, task: str = ""
    ) -> Model:
        def build() -> nn.Module:
            maker = getattr(transformers, f"AutoModelFor{task or tasks[inputs]}")
            return maker.from_config(transformers.AutoConfig.for_model(name, **config))

        return Model(name, "transformers", build, inputs, tuple(hidden.split()), groups)

    def decoder(name: str, hidden: str, groups: int, config: dict[str, Any]) -> Model:
        return model(name, hidden, groups, config, task="CausalLM")

    intermediate, gated = "*.intermediate.dense.weight", "*.gate_proj.weight *.up_proj.weight"
    yield model("bert", f"{intermediate} *.pooler.dense.weight", 3, ENCODER)
    yield model("roberta", f"{intermediate} classifier.dense.weight", 3, ENCODER)
    yield model("electra", f"{intermediate} classifier.dense.weight", 3, {**ENCODER, "embedding_size": 8})
    yield model("deberta-v2", f"{intermediate} pooler.dense.weight", 3, ENCODER)
    yield model("albert", "*.ffn.weight albert.pooler.weight", 2, {**ENCODER, "embedding_size": 8})
    distil = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "vocab_size": 40, "max_position_embeddings": 16}
    yield model("distilbert", "*.ffn.lin1.weight pre_classifier.weight", 3, distil)
    yield decoder("gpt2", "*.mlp.c_fc.weight", 2, {**DECODER, **SHORT_NAMES})
    yield decoder("gptj", "*.mlp.fc_in.weight", 2, {**DECODER, **SHORT_NAMES, "rotary_dim": 4})
    yield decoder("gpt_neox", "*.dense_h_to_4h.weight", 2, DECODER)
    yield decoder(
        "bloom", "*.dense_h_to_4h.weight", 2, {"hidden_size": 16, "n_layer": 2, "n_head": 2, "vocab_size": 40}
    )
    yield decoder("falcon", "*.dense_h_to_4h.weight", 2, DECODER)
    yield decoder("opt", "*.fc1.weight", 2, {**DECODER, "ffn_dim": 24, "word_embed_proj_dim": 16})
    yield decoder("phi", "*.mlp.fc1.weight", 2, DECODER)
    yield decoder("phi3", "*.gate_up_proj.weight", 2, GROUPED)
    for name in ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2"):
        yield decoder(name, gated, 2, GROUPED)
    yield decoder("mixtral", "*.experts.gate_up_proj", 2, {**GROUPED, "num_local_experts": 3})
    yield decoder("mamba", "", 0, {**DECODER, "state_size": 4})
    t5 = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "vocab_size": 40, "use_cache": False}
    yield model("t5", "*.DenseReluDense.wi.weight", 4, {**t5, "decoder_start_token_id": 0}, words_to_words)
    yield model("bart", "*.fc1.weight", 4, {**BOTH_SIDES, "max_position_embeddings": 16}, words_to_words)
    whisper = {**BOTH_SIDES, "num_mel_bins": 8, "max_source_positions": 10, "max_target_positions": 10}
    yield model("whisper", "*.fc1.weight model.encoder.conv1.weight", 5, whisper, mel_to_words)
    heard = "*.feed_forward.intermediate_dense.weight *.feature_extractor.*.conv.weight projector.weight"
    yield model("wav2vec2", heard, 5, SPEECH, sound)
    yield model("vit", "*.mlp.fc1.weight", 2, PICTURES, pixels)
    windows = {
        "image_size": 32,
        "patch_size": 4,
        "embed_dim": 8,
        "depths": [1, 1],
        "num_heads": [2, 2],
        "window_size": 4,
    }
    yield model("swin", "*.mlp.fc1.weight", 2, windows, pixels)
    yield model("convnext", "*.pwconv1.weight", 2, {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2}, pixels)


# -- timm: real architectures, pictures of 64 x 64 ---------------------------------------------------------------------

TIMM = (
    ("resnet18", "layer*.conv1.weight", 8),
    ("resnet50", "layer*.conv[12].weight", 32),
    ("seresnext26t_32x4d", "conv1.[03].weight layer*.conv[12].weight layer*.se.fc1.weight", 26),
    ("res2net50_26w_4s", "", 4),
    ("densenet121", "features.*conv*.weight", 120),
    ("vgg11_bn", "features.*.weight pre_logits.*.weight", 10, {"mlp_ratio": 1 / 64}),
    ("mobilenetv2_100", "conv_stem.weight *.conv_pw.weight *.conv_dw.weight conv_head.weight", 20),
    ("mobilenetv3_large_100", "blocks.[1-6].*.conv*.weight conv_head.weight !*.conv_pwl.weight !*.conv_expand.*", 24),
    ("efficientnet_b0", "conv_*.weight *.conv_pw.weight *.conv_dw.weight *.conv_reduce.weight", 35),
    ("lcnet_050", "* !classifier.*", 17),
    ("rexnet_100", "features.*.conv_exp.conv.weight features.*.se.fc1.weight", 29),
    ("ghostnet_100", "*.ghost1.primary_conv.0.weight *.conv_reduce.weight conv_head.weight", 25),
    ("regnetx_002", "stem.conv.weight s?.*.conv[12].conv.weight", 29),
    ("regnety_002", "stem.conv.weight s?.*.conv[12].conv.weight *.se.fc1.weight", 42),
    ("xception41", "stem.*.weight *.stack.conv[12].conv_pw.weight", 29),
    ("inception_v3", "* !fc.*", 94, {"aux_logits": False, "size": 96}),
    ("hrnet_w18_small", "layer1.*.conv[12].weight *branches.*.conv1.weight incre_*.conv[12].weight", 30),
    ("cspresnet50", "stages.*.blocks.*.conv[12].conv.weight", 26),
    ("ese_vovnet19b_dw", "stem.* *.conv_reduction.conv.weight *.conv_mid.*.weight", 19),
    ("selecsls42", "* !fc.*", 41),
    ("dla34", "level*.conv1.weight", 14),
    ("repvit_m0_9", "*.channel_mixer.conv1.c.weight *.ffn.conv1.c.weight *.se.fc1.weight", 37),
    ("nf_resnet26", "", 0),
    ("convnext_atto", "*.mlp.fc1.weight", 12),
    ("convnextv2_atto", "", 0),
    ("inception_next_atto", "*.mlp.fc1.weight head.fc1.weight", 13),
    ("mambaout_femto", "stages.*.fc1.weight", 18),
    ("poolformer_s12", "*.mlp.fc1.weight", 12),
    (
        "coatnet_nano_rw_224",
        "*.conv1_1x1.weight *.se.fc1.weight *.mlp.fc1.weight stem.conv1.weight",
        24,
        {"img_size": 64},
    ),
    ("mobilevit_xxs", "*.conv1_1x1.conv.weight *.mlp.fc1.weight", 16),
    ("levit_128s", "*.mlp.ln1.linear.weight stem.conv[123].linear.weight", 14, {"img_size": 64}),
    ("vit_tiny_patch16_224", "*.mlp.fc1.weight", 12, {"img_size": 64}),
    ("deit_tiny_distilled_patch16_224", "*.mlp.fc1.weight", 12, {"img_size": 64}),
    ("cait_xxs24_224", "*.mlp.fc1.weight", 26, {"img_size": 64}),
    ("swin_tiny_patch4_window7_224", "*.mlp.fc1.weight", 12, {"img_size": 64, "window_size": 2}),
    ("twins_svt_small", "*.mlp.fc1.weight", 18, {"img_size": 64}),
    ("xcit_nano_12_p16_224", "*.mlp.fc1.weight", 14, {"img_size": 64}),
    ("mixer_s32_224", "*.mlp_*.fc1.weight", 16, {"img_size": 64}),
    ("resmlp_12_224", "*.mlp_channels.fc1.weight", 12, {"img_size": 64}),
    ("gmlp_ti16_224", "*.mlp_channels.fc1.weight", 30, {"img_size": 64}),
)
WITH_RESIDUAL = (("resnet18", "* !fc.*", 12), ("repvgg_a0", "* !head.fc.*", 5))


def from_timm() -> Iterator[Model]:
    with torchvision_names():
        import timm

    def model(name: str, hidden: str, groups: int, settings: dict[str, Any] | None = None, **options: bool) -> Model:
        settings = dict(settings or {})
        size = settings.pop("size", 64)
        shown = name + "".join(f", {option}" for option in options)
        build = lambda: timm.create_model(name, num_classes=5, **settings)  # noqa: E731
        return Model(
            shown, "timm", build, lambda: torch.randn(2, 3, size, size), tuple(hidden.split()), groups, options
        )

    yield from (model(*row) for row in TIMM)
    yield from (model(*row, residual=True) for row in WITH_RESIDUAL)


# -- networks of torch.nn alone ----------------------------------------------------------------------------------------


def transformer() -> nn.Module:
    core = nn.Transformer(16, 2, 2, 2, dim_feedforward=24, batch_first=True)
    return Net(
        lambda net, source, target: net.head(net.core(net.words(source), net.words(target))),
        words=nn.Embedding(40, 16),
        core=core,
        head=nn.Linear(16, 40),
    )


def language_model() -> nn.Module:
    core = nn.LSTM(8, 12, num_layers=2, batch_first=True, dropout=0.1)
    return Net(
        lambda net, x: net.head(net.core(net.words(x))[0]), words=nn.Embedding(40, 8), core=core, head=nn.Linear(12, 40)
    )


def autoencoder() -> nn.Module:
    """A variational one: the mean and the spread of the code read the same hidden layer."""

    def run(net: Any, x: torch.Tensor) -> torch.Tensor:
        h = net.encoder(x)
        mean, spread = net.mean(h), net.spread(h)
        return net.decoder(mean + torch.randn_like(mean) * (spread / 2).exp())

    return Net(
        run,
        encoder=nn.Sequential(nn.Conv2d(1, 6, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(96, 12), nn.ReLU()),
        mean=nn.Linear(12, 4),
        spread=nn.Linear(12, 4),
        decoder=nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 64)),
    )


def atari() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(4, 8, 8, 4),
        nn.ReLU(),
        nn.Conv2d(8, 16, 4, 2),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 49, 32),
        nn.ReLU(),
        nn.Linear(32, 6),
    )


def token_pairs() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randint(40, (2, 6)), torch.randint(40, (2, 4))


PLAIN = (
    Model("nn.Transformer", "torch", transformer, token_pairs, ("*.linear1.weight",), 4),
    Model("LSTM language model", "torch", language_model, lambda: torch.randint(40, (2, 6)), ("core.weight_*",), 2),
    Model(
        "variational auto-encoder",
        "torch",
        autoencoder,
        lambda: torch.randn(2, 1, 8, 8),
        ("encoder.*.weight", "mean.weight", "spread.weight", "decoder.0.weight"),
        4,
    ),
    Model("Atari DQN", "torch", atari, lambda: torch.randn(2, 4, 84, 84), ("*", "!9.*"), 4),
)


def from_case(case: Case) -> Model:
    return Model(
        case.name, "worked by hand", case.build, case.inputs, tuple(case.groups), len(case.groups), dict(case.options)
    )


def zoo() -> list[Model]:
    """Every network, other people's first."""
    return [*from_transformers(), *from_timm(), *PLAIN, *map(from_case, CASES)]
