"""Ready lines that embed with a tuned model in the libraries that people use, with its prompts right in each.

Called by `card`; docs/using-the-model.md shows the same. Tests execute them with the real packages.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

MODEL = "path/to/model"  # what stands for the model's folder in the lines

SENTENCE_TRANSFORMERS = """\
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("path/to/model")
queries = model.encode_query(["How do I reset my password?"], normalize_embeddings=True)
passages = model.encode_document(["Open Settings and choose Security."], normalize_embeddings=True)
scores = model.similarity(queries, passages)
"""

RERANKER_FOLDER = "path/to/reranker"  # the same for a run's reranker/
_RERANKER = """\
import numpy as np
from sentence_transformers import CrossEncoder

reranker = CrossEncoder("path/to/reranker")
question = "How do I reset my password?"
found = ["Go to the lobby.", "Open Settings and choose Security."]  # the first passages of a search
searched = np.array([0.41, 0.38])  # and their scores there
judged = reranker.predict([(question, passage) for passage in found])


def share(scores):
    return (scores - scores.min()) / max(scores.max() - scores.min(), 1e-9)


order = np.argsort(-({search:g} * share(searched) + {weight:g} * share(judged)))
ranked = [found[place] for place in order]
"""

LANGCHAIN = """\
from langchain_huggingface import HuggingFaceEmbeddings

embeddings = HuggingFaceEmbeddings(
    model_name="path/to/model",
    query_encode_kwargs={{{as_query}"prompt": {query}, "normalize_embeddings": True}},
    encode_kwargs={{{as_passage}"prompt": {passage}, "normalize_embeddings": True}},
)
query = embeddings.embed_query("How do I reset my password?")
passages = embeddings.embed_documents(["Open Settings and choose Security."])
"""

LLAMA_INDEX = """\
from llama_index.embeddings.huggingface import HuggingFaceEmbedding

embed_model = HuggingFaceEmbedding(
    model_name="path/to/model",
    query_instruction={query},
    text_instruction={passage},
    normalize=True,
)
query = embed_model.get_query_embedding("How do I reset my password?")
passages = embed_model.get_text_embedding_batch(["Open Settings and choose Security."])
"""


def reranker_lines(weight: float) -> str:
    """Lines of Python that put found passages in the order of the reranker in the folder `RERANKER_FOLDER`, which has
    this weight beside the search."""
    return _RERANKER.format(search=round(1 - weight, 3), weight=weight)


def lines(prompts: Mapping[str, str], *, routed: bool = False) -> dict[str, str]:
    """Library -> lines of Python that embed a question and a passage with the model in the folder `MODEL`.

    prompts: `query` and `passage`. sentence-transformers finds them in the model's own files; the two others must be
    told, LangChain since it calls a method that uses none, LlamaIndex since it puts its own in their place. routed:
    whether the model must be told what is a query, which LlamaIndex has no way to do.
    """
    task = {"as_query": '"task": "query", ', "as_passage": '"task": "document", '}
    tasks = task if routed else dict.fromkeys(task, "")
    quoted = {name: json.dumps(prompts[name], ensure_ascii=False) for name in ("query", "passage")}
    found = {"sentence-transformers": SENTENCE_TRANSFORMERS, "LangChain": LANGCHAIN.format(**quoted, **tasks)}
    return found if routed else {**found, "LlamaIndex": LLAMA_INDEX.format(**quoted)}


_MATRIX = """\
import numpy as np
from safetensors.numpy import load_file

W = load_file("path/to/model/{file}")["linear.weight"]  # (dimensions, dimensions)


def turned(vector):
    y = W @ (np.asarray(vector) / np.linalg.norm(vector))
    return y / np.linalg.norm(y)
"""
_TWO_LAYERS = """\
import math
import numpy as np
from safetensors.numpy import load_file

layers = [load_file(f"path/to/model/{place}_Dense/model.safetensors") for place in (0, 1)]


def turned(vector):
    y = np.asarray(vector) / np.linalg.norm(vector)
    for layer in layers:
        z = layer["linear.weight"] @ y + layer["linear.bias"]
        y = y + z * (1 + np.vectorize(math.erf)(z / math.sqrt(2))) / 2
    return y / np.linalg.norm(y)
"""
# an adapter alone, by its kind: from an endpoint's vector of a text, prompt included, to the one to compare
OF_LAYERS = {
    "linear": _MATRIX.replace("{file}", "0_Dense/model.safetensors"),
    "query_linear": _MATRIX.replace("{file}", "query_0_Dense/model.safetensors"),
    "mlp": _TWO_LAYERS,
}
