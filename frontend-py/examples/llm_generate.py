"""Text generation with a KV cache: a Llama from Hugging Face transformers, random weights.

Each new token is read by the program before the next step, as greedy generation does.
"""

import _example
import torch
from transformers import LlamaConfig, LlamaForCausalLM

PROMPT_TOKENS = 64
NEW_TOKENS = 32


def prepare(device):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8000,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=None,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config).eval().to(device)
    prompt = torch.randint(5, config.vocab_size, (1, PROMPT_TOKENS))

    def work():
        inputs = prompt.to(device)
        out = model.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
        )
        tokens = out.sequences[0, PROMPT_TOKENS:].cpu()
        logits = torch.stack(out.logits).cpu()
        answer = f"{len(tokens)} tokens: {tokens[:10].tolist()} ... (random weights)"
        return answer, [tokens, logits]

    return work


if __name__ == "__main__":
    _example.main(prepare)
