"""Writes GGUF files with random weights of the shape that a checkpoint's config.json describes."""
import json
import pathlib

import gguf
import numpy

TYPES = {"BF16": gguf.GGMLQuantizationType.BF16, "Q8_0": gguf.GGMLQuantizationType.Q8_0}
F32 = gguf.GGMLQuantizationType.F32
# Rows of a matrix are repeats of this many random ones: what they hold does not change the speed.
PATTERN_ROWS = 256


class Writer:
    """Announces every tensor first and writes it afterwards, one matrix in memory at a time."""

    def __init__(self, path, arch, matrix_type):
        self.writer = gguf.GGUFWriter(path, arch)
        self.matrix_type = matrix_type
        self.tensors = []
        self.patterns = {}

    def pattern(self, kind, cols):
        if (kind, cols) not in self.patterns:
            rows = numpy.random.default_rng(cols).normal(
                0, cols ** -0.5, (PATTERN_ROWS, cols)).astype(numpy.float32)
            self.patterns[kind, cols] = rows if kind == F32 else gguf.quants.quantize(rows, kind)
        return self.patterns[kind, cols]

    def matrix(self, name, *shape, kind=None):
        self.tensors.append((name, shape, self.matrix_type if kind is None else kind))

    def vector(self, name, size):
        self.tensors.append((name, (size,), None))

    def write(self):
        for name, shape, kind in self.tensors:
            if kind is None:
                self.writer.add_tensor_info(name, shape, numpy.dtype("float32"), shape[0] * 4)
                continue
            pattern = self.pattern(kind, shape[-1])
            stored = (*shape[:-1], pattern.shape[1])
            size = int(numpy.prod(stored)) * pattern.dtype.itemsize
            self.writer.add_tensor_info(name, stored, pattern.dtype, size, raw_dtype=kind)
        self.writer.write_header_to_file()
        self.writer.write_kv_data_to_file()
        self.writer.write_ti_data_to_file()
        for _, shape, kind in self.tensors:
            if kind is None:
                self.writer.write_tensor_data(numpy.ones(shape, numpy.float32))
                continue
            pattern = self.pattern(kind, shape[-1])
            self.writer.write_tensor_data(
                numpy.resize(pattern, (*shape[:-1], pattern.shape[1])))
        self.writer.close()


def add_vocabulary(writer, checkpoint, vocab_size):
    """The checkpoint's own, for llama-server turns ids into text; ids it does not have are unused."""
    tokenizer = json.loads((checkpoint / "tokenizer.json").read_text())
    tokens = [f"[unused{i}]" for i in range(vocab_size)]
    types = [gguf.TokenType.UNUSED] * vocab_size
    for text, i in tokenizer["model"]["vocab"].items():
        tokens[i], types[i] = text, gguf.TokenType.NORMAL
    for added in tokenizer["added_tokens"]:
        tokens[added["id"]], types[added["id"]] = added["content"], gguf.TokenType.CONTROL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    merges = [m if isinstance(m, str) else " ".join(m) for m in tokenizer["model"]["merges"]]
    writer.add_token_merges(merges or ["a b"])  # a file without any is refused
    writer.add_eos_token_id(tokenizer["added_tokens"][0]["id"])


def describe(writer, config):
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(4096)
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config.get("intermediate_size", config["hidden_size"]))
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(1e6)
    if config.get("num_experts"):
        writer.add_expert_count(config["num_experts"])
        writer.add_expert_used_count(config["num_experts_per_tok"])
        writer.add_expert_feed_forward_length(config["moe_intermediate_size"])


def write_model(checkpoint: pathlib.Path, path: pathlib.Path, kind: str):
    """A GGUF of `kind` ("BF16", "Q8_0") at `path`; norms and the gate are F32, as llama.cpp's own
    converter has them."""
    config = json.loads((checkpoint / "config.json").read_text())
    experts = config.get("num_experts", 0)
    model = Writer(path, "qwen3moe" if experts else "qwen3", TYPES[kind])
    describe(model.writer, config)
    add_vocabulary(model.writer, checkpoint, config["vocab_size"])
    hidden, head_dim = config["hidden_size"], config["head_dim"]
    q = config["num_attention_heads"] * head_dim
    kv = config["num_key_value_heads"] * head_dim
    model.matrix("token_embd.weight", config["vocab_size"], hidden)
    for i in range(config["num_hidden_layers"]):
        block = f"blk.{i}."
        model.vector(block + "attn_norm.weight", hidden)
        model.matrix(block + "attn_q.weight", q, hidden)
        model.matrix(block + "attn_k.weight", kv, hidden)
        model.matrix(block + "attn_v.weight", kv, hidden)
        model.vector(block + "attn_q_norm.weight", head_dim)
        model.vector(block + "attn_k_norm.weight", head_dim)
        model.matrix(block + "attn_output.weight", hidden, q)
        model.vector(block + "ffn_norm.weight", hidden)
        if experts:
            width = config["moe_intermediate_size"]
            model.matrix(block + "ffn_gate_inp.weight", experts, hidden, kind=F32)
            model.matrix(block + "ffn_gate_exps.weight", experts, width, hidden)
            model.matrix(block + "ffn_up_exps.weight", experts, width, hidden)
            model.matrix(block + "ffn_down_exps.weight", experts, hidden, width)
        else:
            width = config["intermediate_size"]
            model.matrix(block + "ffn_gate.weight", width, hidden)
            model.matrix(block + "ffn_up.weight", width, hidden)
            model.matrix(block + "ffn_down.weight", hidden, width)
    model.vector("output_norm.weight", hidden)
    if not config.get("tie_word_embeddings"):
        model.matrix("output.weight", config["vocab_size"], hidden)
    model.write()
