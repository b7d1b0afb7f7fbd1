#!/usr/bin/env python3
"""Writes the quantised matrices and models beside it, with the library that people use.

    pip install torch==2.15.0 bitsandbytes==0.50.2 safetensors; python3 make.py

matrices/  one tensor of every format and awkward shape
wide/      a model of 2 layers, head sizes 128 and 256, 64 experts top-10 of width 17, hidden size 96 (rows that are no
           whole blocks): FP4 without double quantisation, router and shared-expert gate quantised too, its
           companions in another shard than the weights; MTP tensors
deep/      the same with hidden size 128 and 4 experts of 64 columns, NF4 with double quantisation: what
           an nf4 pool keeps
expected.json in each: SHA-256 of every dequantised matrix as little-endian f32, by the library itself
(bitsandbytes.functional.dequantize_4bit and int8_vectorwise_dequant, torch's float8; int8 and FP8 rounded to bf16).
The same versions write the same bytes.
"""

import hashlib
import json
import os

import bitsandbytes.functional as F
import torch
from safetensors.torch import save_file

HERE = os.path.dirname(os.path.abspath(__file__))
BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32


def weights(generator, rows, cols, dtype=BF16):
    """Normal values with a few outliers, as trained matrices have them."""
    w = torch.randn(rows, cols, generator=generator) / cols**0.5
    w[torch.rand(rows, cols, generator=generator) < 0.002] *= 8
    return w.to(dtype)


def digest(values):
    return hashlib.sha256(values.to(F32).contiguous().numpy().tobytes()).hexdigest()


class Writer:
    def __init__(self):
        self.tensors = {}
        self.expected = {}

    def plain(self, name, w):
        self.tensors[name] = w.contiguous()

    def bnb4(self, name, w, quant_type="nf4", double=True, blocksize=64, storage=torch.uint8):
        packed, state = F.quantize_4bit(w, blocksize=blocksize, compress_statistics=double,
                                        quant_type=quant_type, quant_storage=storage)
        self.tensors[name] = packed
        for key, value in state.as_dict(packed=True).items():
            self.tensors[f"{name}.{key}"] = value.clone()
        self.expected[name] = {"shape": list(w.shape), "sha256": digest(F.dequantize_4bit(packed, state))}

    def int8(self, name, w):
        codes, scb, _ = F.int8_vectorwise_quant(w.to(F16))
        module = name.removesuffix(".weight")
        self.tensors[name] = codes
        self.tensors[f"{module}.SCB"] = scb
        self.tensors[f"{module}.weight_format"] = torch.tensor(0, dtype=torch.uint8)
        values = F.int8_vectorwise_dequant(codes, scb).to(BF16)
        self.expected[name] = {"shape": list(w.shape), "sha256": digest(values)}

    def fp8(self, name, w, block=(128, 128), scale_dtype=BF16, suffix="weight_scale_inv"):
        rows, cols = w.shape
        br, bc = block if block else (1, cols)
        scales = torch.zeros(-(-rows // br), -(-cols // bc))
        codes = torch.zeros(rows, cols, dtype=torch.float8_e4m3fn)
        values = torch.zeros(rows, cols)
        for i in range(scales.shape[0]):
            for j in range(scales.shape[1]):
                part = (slice(i * br, (i + 1) * br), slice(j * bc, (j + 1) * bc))
                scale = (w[part].to(F32).abs().max() / 448).to(scale_dtype).to(F32)
                scales[i, j] = scale
                codes[part] = (w[part].to(F32) / scale).clamp(-448, 448).to(torch.float8_e4m3fn)
                values[part] = codes[part].to(F32) * scale
        self.tensors[name] = codes
        self.tensors[name.removesuffix("weight") + suffix] = scales.to(scale_dtype)
        self.expected[name] = {"shape": list(w.shape), "sha256": digest(values.to(BF16))}

    def save(self, directory, config, shard_of):
        directory = os.path.join(HERE, directory)
        os.makedirs(directory, exist_ok=True)
        shards = {}
        for name, tensor in self.tensors.items():
            shards.setdefault(shard_of(name), {})[name] = tensor
        weight_map, total = {}, 0
        for index, (_, tensors) in enumerate(sorted(shards.items())):
            file = (f"model-{index + 1:05}-of-{len(shards):05}.safetensors" if len(shards) > 1
                    else "model.safetensors")
            save_file(tensors, os.path.join(directory, file), metadata={"format": "pt"})
            weight_map |= {name: file for name in tensors}
            total += sum(t.numel() * t.element_size() for t in tensors.values())
        if len(shards) > 1:
            index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
            write_json(directory, "model.safetensors.index.json", index)
        write_json(directory, "config.json", config)
        write_json(directory, "expected.json", dict(sorted(self.expected.items())))


def write_json(directory, name, value):
    with open(os.path.join(directory, name), "w") as file:
        json.dump(value, file, indent=1 if name == "config.json" else None)
        file.write("\n")


def matrices():
    g = torch.Generator().manual_seed(1)
    out = Writer()
    for quant_type in ("nf4", "fp4"):
        for double in (False, True):
            for rows, cols in ((1, 64), (3, 5), (7, 33), (50, 100), (64, 128), (129, 96), (300, 64)):
                out.bnb4(f"{quant_type}.{'double' if double else 'single'}.{rows}x{cols}.weight",
                         weights(g, rows, cols), quant_type, double)
    for dtype, name in ((F16, "f16"), (F32, "f32")):
        out.bnb4(f"nf4.{name}.40x72.weight", weights(g, 40, 72, dtype), "nf4", True)
    for blocksize in (128, 256, 1024):
        out.bnb4(f"nf4.block{blocksize}.48x80.weight", weights(g, 48, 80), "nf4", False, blocksize)
    out.bnb4("nf4.stored_bf16.16x96.weight", weights(g, 16, 96), "nf4", True, storage=BF16)
    zeros = weights(g, 4, 64)
    zeros[1] = 0
    out.bnb4("nf4.zero_block.4x64.weight", zeros, "nf4", False)
    for rows, cols in ((1, 64), (5, 7), (33, 130), (64, 128)):
        out.int8(f"int8.{rows}x{cols}.weight", weights(g, rows, cols))
    for rows, cols in ((1, 64), (128, 128), (130, 200), (257, 60)):
        for dtype, name in ((BF16, "bf16"), (F32, "f32")):
            out.fp8(f"fp8.{name}.{rows}x{cols}.weight", weights(g, rows, cols), scale_dtype=dtype)
        out.fp8(f"fp8.rows.{rows}x{cols}.weight", weights(g, rows, cols), block=None, scale_dtype=F32,
                suffix="weight_scale")
    out.save("matrices", {}, lambda name: 0)


def model(directory, hidden, width, experts, top_k, quant_type, double):
    g = torch.Generator().manual_seed(2)
    vocab, heads, kv_heads, head_dim, k_heads, v_heads, dk = 64, 2, 1, 256, 1, 2, 128
    out = Writer()

    def linear(name, rows, cols):
        out.bnb4(name, weights(g, rows, cols), quant_type, double)

    def norm(name, size, mean=0.0):
        out.plain(name, (mean + 0.05 * torch.randn(size, generator=g)).to(BF16))

    def ffn(prefix, columns):
        linear(prefix + "gate_proj.weight", columns, hidden)
        linear(prefix + "up_proj.weight", columns, hidden)
        linear(prefix + "down_proj.weight", hidden, columns)

    out.plain("model.embed_tokens.weight", torch.randn(vocab, hidden, generator=g).to(BF16))
    for layer in range(2):
        p = f"model.layers.{layer}."
        norm(p + "input_layernorm.weight", hidden)
        norm(p + "post_attention_layernorm.weight", hidden)
        if layer == 0:
            q = p + "linear_attn."
            linear(q + "in_proj_qkvz.weight", 2 * k_heads * dk + 2 * v_heads * dk, hidden)
            linear(q + "in_proj_ba.weight", 2 * v_heads, hidden)
            linear(q + "out_proj.weight", hidden, v_heads * dk)
            out.plain(q + "conv1d.weight",
                      (0.3 * torch.randn(2 * k_heads * dk + v_heads * dk, 1, 4, generator=g)).to(BF16))
            norm(q + "A_log", v_heads, 1.4)
            norm(q + "dt_bias", v_heads, -3.0)
            norm(q + "norm.weight", dk, 1.0)
        else:
            q = p + "self_attn."
            linear(q + "q_proj.weight", 2 * heads * head_dim, hidden)
            linear(q + "k_proj.weight", kv_heads * head_dim, hidden)
            linear(q + "v_proj.weight", kv_heads * head_dim, hidden)
            linear(q + "o_proj.weight", hidden, heads * head_dim)
            norm(q + "q_norm.weight", head_dim)
            norm(q + "k_norm.weight", head_dim)
        linear(p + "mlp.gate.weight", experts, hidden)
        linear(p + "mlp.shared_expert_gate.weight", 1, hidden)
        ffn(p + "mlp.shared_expert.", width)
        for expert in range(experts):
            ffn(f"{p}mlp.experts.{expert}.", width)
    norm("model.norm.weight", hidden)
    out.plain("lm_head.weight", weights(g, vocab, hidden))
    norm("mtp.norm.weight", hidden)
    linear("mtp.fc.weight", hidden, 2 * hidden)
    config = {
        "architectures": ["Qwen3NextForCausalLM"], "model_type": "qwen3_next", "vocab_size": vocab,
        "hidden_size": hidden, "num_hidden_layers": 2, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "head_dim": head_dim, "partial_rotary_factor": 0.25,
        "rope_theta": 10000000, "rms_norm_eps": 1e-6, "max_position_embeddings": 1024,
        "linear_num_key_heads": k_heads, "linear_num_value_heads": v_heads, "linear_key_head_dim": dk,
        "linear_value_head_dim": dk, "linear_conv_kernel_dim": 4, "num_experts": experts,
        "num_experts_per_tok": top_k, "moe_intermediate_size": width,
        "shared_expert_intermediate_size": width, "norm_topk_prob": True, "tie_word_embeddings": False,
        "layer_types": ["linear_attention", "full_attention"],
        "quantization_config": {
            "quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False,
            "bnb_4bit_quant_type": quant_type, "bnb_4bit_use_double_quant": double,
            "bnb_4bit_compute_dtype": "bfloat16", "bnb_4bit_quant_storage": "uint8"},
    }

    def shard_of(name):
        return int(name.endswith((".absmax", ".quant_map")) or "nested" in name or "quant_state" in name)

    out.save(directory, config, shard_of)


matrices()
model("wide", 96, 17, 64, 10, "fp4", False)
model("deep", 128, 64, 4, 2, "nf4", True)
