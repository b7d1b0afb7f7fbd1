# Sourced by run.sh, serve.sh and in_turn.sh: programs of a bundle or a build, and for the last two a
# model at the geometry of Qwen3-Next-80B-A3B whose weights are generated.
# shellcheck shell=bash disable=SC2034

# find_programs FOLDER: of the bundle that the script lies in, or of the build. Sets `bin`.
find_programs() {
  bin=$1/../../build/release/bin
  [[ ! -f $1/programs.tar.xz || -d $1/bin ]] || tar -C "$1" -xJf "$1/programs.tar.xz"
  if [[ -d $1/bin ]]; then
    bin=$1/bin
    export LD_LIBRARY_PATH=$1/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
  fi
}

# write_model FOLDER LAYERS
write_model() {
  mkdir "$1"
  cat >"$1/config.json" <<END
{"architectures": ["Qwen3NextForCausalLM"], "model_type": "qwen3_next", "dtype": "bfloat16",
 "vocab_size": 151936, "hidden_size": 2048, "num_hidden_layers": $2, "intermediate_size": 5120,
 "hidden_act": "silu", "rms_norm_eps": 1e-6, "num_attention_heads": 16, "num_key_value_heads": 2,
 "head_dim": 256, "partial_rotary_factor": 0.25, "rope_theta": 10000000,
 "max_position_embeddings": 262144, "full_attention_interval": 4, "linear_num_key_heads": 16,
 "linear_num_value_heads": 32, "linear_key_head_dim": 128, "linear_value_head_dim": 128,
 "linear_conv_kernel_dim": 4, "num_experts": 512, "num_experts_per_tok": 10,
 "moe_intermediate_size": 512, "shared_expert_intermediate_size": 512, "norm_topk_prob": true,
 "decoder_sparse_step": 1, "mlp_only_layers": [], "tie_word_embeddings": false,
 "eos_token_id": 151645}
END
  # How that model is sampled where a request does not say.
  printf '{"do_sample": true, "temperature": 0.7, "top_k": 20, "top_p": 0.8}\n' \
    >"$1/generation_config.json"
}

# Generated pools lie in /dev/shm, where a trunk can map them, on huge pages if that is allowed: root.
enlarge_shm() { mount -o remount,size=110G,huge=advise /dev/shm 2>/dev/null || true; }

# end_processes PID...
end_processes() {
  for pid in "$@"; do kill "$pid" 2>/dev/null || true; done
  for pid in "$@"; do wait "$pid" 2>/dev/null || true; done
}

# remove_segment EXPERT_LOG: of this model; others are somebody's.
remove_segment() {
  local fingerprint
  fingerprint=$(grep -o 'fingerprint=[0-9a-f]\{16\}' "$1" 2>/dev/null | head -n 1) || true
  [[ -z $fingerprint ]] || rm -f "/dev/shm/banyan-${fingerprint#*=}-"*
}
