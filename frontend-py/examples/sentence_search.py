"""Sentence search with real weights: all-MiniLM-L6-v2, 22.7 M parameters, ranks sentences."""

import _example
import torch
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer

QUERY = "How do I get my money back?"
SENTENCES = [
    "Refunds are paid within five working days.",
    "Our office is closed on public holidays.",
    "The parcel was left with a neighbour.",
    "To return an item, print the label and drop it at any post office.",
    "Change your password in the account settings.",
    "The museum shows paintings of the 17th century.",
    "A cat sleeps on the warm stones.",
    "We charge your card only when the order ships.",
]


def prepare(device):
    directory = _example.minilm_directory()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = _example.own_memory(AutoModel.from_pretrained(directory, dtype=torch.float32)).eval().to(device)

    def embed(texts):
        batch = {k: v.to(device) for k, v in tokenizer(texts, padding=True, return_tensors="pt").items()}
        words = model(**batch).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1).to(words.dtype)
        return F.normalize((words * mask).sum(1) / mask.sum(1), dim=-1)

    @torch.no_grad()
    def work():
        scores = (embed(SENTENCES) @ embed([QUERY])[0]).cpu()
        order = scores.argsort(descending=True).tolist()
        ranked = "; ".join(f'{scores[i]:.3f} "{SENTENCES[i]}"' for i in order[:2])
        return f'"{QUERY}" -> {ranked}; last {scores[order[-1]]:.3f}', [scores]

    return work


if __name__ == "__main__":
    _example.main(prepare)
