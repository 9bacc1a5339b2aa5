"""Pipelines of real architectures with random weights, in one process each: every model is named."""

import pytest
import torch

genie = pytest.importorskip("genie")
transformers = pytest.importorskip("transformers")
diffusers = pytest.importorskip("diffusers")

DEVICE = "remote_accelerator"


def small(**more):
    return dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128, vocab_size=500) | more


@pytest.fixture(autouse=True)
def fresh():
    torch.manual_seed(0)
    with torch.no_grad():
        yield


def llama(layers=2):
    config = transformers.LlamaConfig(**small(num_hidden_layers=layers, num_key_value_heads=4, max_position_embeddings=256))
    return transformers.LlamaForCausalLM(config).eval().to(DEVICE)


def bert():
    return transformers.BertModel(transformers.BertConfig(**small())).eval().to(DEVICE)


def clip():
    text = small(projection_dim=32, max_position_embeddings=32, bos_token_id=0, eos_token_id=1)
    vision = small(projection_dim=32, image_size=32, patch_size=8)
    vision.pop("vocab_size")
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=32)
    return transformers.CLIPModel(config).eval().to(DEVICE)


def tokens(length, batch=1):
    return torch.randint(5, 500, (batch, length)).to(DEVICE)


def told(*labels):
    """What the program ran: these models in this order; the phases of each."""
    explanation = genie.explain()
    assert [str(model) for model in explanation.models] == list(labels), str(explanation)
    kinds = list(dict.fromkeys(labels))
    assert str(explanation.workload) == (kinds[0] if len(kinds) == 1 else "mixed"), str(explanation)
    return [[str(phase) for phase in model.phases] for model in explanation.models]


def test_retrieval_then_generation():
    retriever, generator = bert(), llama()
    genie.reset_trace()
    documents = retriever(tokens(16, 6)).last_hidden_state.mean(1)
    query = retriever(tokens(8)).last_hidden_state.mean(1)
    best = int((documents @ query.T).argmax())
    generator.generate(tokens(12 + best), max_new_tokens=6, min_new_tokens=6, do_sample=False)
    assert told("text_encoder", "llm") == [["text.encode"], ["llm.prefill", "llm.decode"]]


def test_assisted_decoding():
    target, draft = llama(3), llama(1)
    genie.reset_trace()
    for model in (target, draft):
        model.generation_config.eos_token_id = None
    target.generate(tokens(12), assistant_model=draft, max_new_tokens=8, do_sample=False)
    explanation = genie.explain()
    assert sorted(str(model) for model in explanation.models) == ["llm", "llm"], str(explanation)
    assert str(explanation.workload) == "llm"
    sizes = sorted(model.weights for model in explanation.models)
    assert sizes[1] > 2 * sizes[0], "draft and target are told apart"


def test_diffusion_from_text():
    """Activations pass from the text encoder to the denoiser, and its latents to the decoder: one workload."""
    config = transformers.CLIPTextConfig(**small(max_position_embeddings=32, bos_token_id=0, eos_token_id=1))
    encoder = transformers.CLIPTextModel(config).eval().to(DEVICE)
    unet = diffusers.UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(32, 64),
        layers_per_block=1,
        cross_attention_dim=64,
        norm_num_groups=8,
        attention_head_dim=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=(32, 64),
        up_block_types=("UpDecoderBlock2D",) * 2,
        down_block_types=("DownEncoderBlock2D",) * 2,
        norm_num_groups=8,
        latent_channels=4,
        sample_size=32,
    )
    unet, vae = unet.eval().to(DEVICE), vae.eval().to(DEVICE)
    scheduler = diffusers.DDIMScheduler()
    scheduler.set_timesteps(4)
    genie.reset_trace()
    hidden = encoder(tokens(8)).last_hidden_state
    latents = torch.randn(1, 4, 16, 16).to(DEVICE)
    for time in scheduler.timesteps:
        noise = unet(latents, time, encoder_hidden_states=hidden).sample
        latents = scheduler.step(noise, time, latents).prev_sample
    vae.decode(latents).sample.cpu()
    explanation = genie.explain()
    assert str(explanation.workload) == "diffusion", str(explanation)
    assert {"diffusion.denoise", "diffusion.vae"} <= {str(phase) for phase in explanation.phases}, str(explanation)


def test_training_with_evaluation():
    torchvision = pytest.importorskip("torchvision")
    trained = torchvision.models.resnet18(num_classes=10).to(DEVICE)
    average = torchvision.models.resnet18(num_classes=10).eval().to(DEVICE)
    optimizer = torch.optim.SGD(trained.parameters(), 0.01)
    genie.reset_trace()
    for _ in range(2):
        pictures, labels = torch.randn(2, 3, 64, 64).to(DEVICE), torch.randint(10, (2,)).to(DEVICE)
        with torch.enable_grad():
            torch.nn.functional.cross_entropy(trained(pictures), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        average(torch.randn(2, 3, 64, 64).to(DEVICE)).argmax(-1).cpu()
    trains, serves = told("vision", "vision")
    assert trains == ["train.forward", "train.backward", "train.optimizer"]
    assert serves == ["vision.stem", "vision.backbone", "vision.head"]


def test_detection_then_ranking():
    torchvision = pytest.importorskip("torchvision")
    detector = torchvision.models.detection.ssdlite320_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=5
    )
    detector, ranker = detector.eval().to(DEVICE), clip()
    genie.reset_trace()
    found = detector([torch.randn(3, 64, 64).to(DEVICE)])[0]
    found["scores"].cpu()
    crops = torch.randn(4, 3, 32, 32).to(DEVICE)
    ranker(input_ids=tokens(8), pixel_values=crops).logits_per_text.argmax(-1).cpu()
    sees, ranks = told("vision", "multimodal")
    assert "vision.backbone" in sees and {"mm.vision_encoder", "mm.text_encoder"} <= set(ranks)


def test_speech_then_language():
    config = transformers.WhisperConfig(
        vocab_size=500,
        d_model=64,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=128,
        decoder_ffn_dim=128,
        num_mel_bins=40,
        max_source_positions=100,
        max_target_positions=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=3,
    )
    hears = transformers.WhisperForConditionalGeneration(config).eval().to(DEVICE)
    speaks = llama()
    genie.reset_trace()
    sound = torch.randn(1, 40, 200).to(DEVICE)
    heard = hears.generate(sound, max_new_tokens=6, min_new_tokens=6, do_sample=False)
    speaks.generate(heard.clamp(5, 499), max_new_tokens=6, min_new_tokens=6, do_sample=False)
    listens, answers = told("audio", "llm")
    assert "audio.encode" in listens and answers == ["llm.prefill", "llm.decode"]
