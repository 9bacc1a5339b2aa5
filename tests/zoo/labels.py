"""The vocabulary of ground truth: ten workload classes and twenty-four phases."""

WORKLOADS = (
    "llm",
    "text_encoder",
    "seq2seq",
    "vision",
    "recsys",
    "multimodal",
    "audio",
    "diffusion",
    "gnn",
    "other",
)

PHASES = {
    "llm.prefill": "decoder LM over the whole prompt, KV cache written",
    "llm.decode": "one (or few) token steps, KV cache read and appended",
    "seq2seq.encode": "encoder of an encoder-decoder",
    "seq2seq.decode": "decoder steps, cross-attention to the encoder",
    "text.encode": "bidirectional text encoder",
    "vision.stem": "first convolution or patch embedding",
    "vision.backbone": "stages or blocks of the backbone",
    "vision.head": "pool and classifier, or dense prediction head",
    "vision.detect": "RPN, ROI and box heads, NMS",
    "recsys.embedding_lookup": "sparse tables",
    "recsys.dense_mlp": "MLP towers, cross nets",
    "recsys.interaction": "dot, FM or attention between embeddings",
    "mm.vision_encoder": "image tower",
    "mm.text_encoder": "text tower",
    "mm.fusion": "cross-attention or joint encoder of the modalities",
    "audio.frontend": "convolutional feature extractor",
    "audio.encode": "acoustic encoder",
    "audio.decode": "text decoder",
    "diffusion.denoise": "one call of the denoiser in the sampling loop",
    "diffusion.vae": "latent decode",
    "gnn.message_passing": "gather/scatter layer",
    "train.forward": "loss of a training step",
    "train.backward": "gradients of a training step",
    "train.optimizer": "update of a training step",
    "other.forward": "none of the above",
}

TRAIN = ("train.forward", "train.backward", "train.optimizer")
