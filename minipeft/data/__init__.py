"""Data: fetched assets, classification tasks, tokens and batches.

`fetch` brings an asset of the one table in `assets.py` into the user's cache; `load_task` gives a `Task` (by name, or
from a .csv or .jsonl of the user's own) whose rows are without duplicates and split by hash, fixed for ever;
`Tokenizer` turns texts into token numbers; `encode_examples`, `bucketed_order`, `sorted_order` and `collate` make
batches.
"""

from minipeft.data.asset_table import ASSETS, Asset
from minipeft.data.assets import cache_folder, fetch, is_fetched
from minipeft.data.batching import (
    Batch,
    EncodedSet,
    TrainingSet,
    bucketed_order,
    collate,
    encode_examples,
    pad,
    sorted_order,
)
from minipeft.data.splits import Example
from minipeft.data.tasks import TASK_NAMES, Task, load_task
from minipeft.data.token_rows import IGNORE, PackedTokens, TokenRows
from minipeft.data.tokenize import Encoded, Tokenizer

__all__ = [
    "ASSETS",
    "IGNORE",
    "TASK_NAMES",
    "Asset",
    "Batch",
    "Encoded",
    "EncodedSet",
    "Example",
    "PackedTokens",
    "Task",
    "TokenRows",
    "Tokenizer",
    "TrainingSet",
    "bucketed_order",
    "cache_folder",
    "collate",
    "encode_examples",
    "fetch",
    "is_fetched",
    "load_task",
    "pad",
    "sorted_order",
]
