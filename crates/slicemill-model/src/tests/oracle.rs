//! The decoder against candle's own LLaMA, Qwen2 and Qwen3 on the same random weights.

use candle_core::{DType, Device, Tensor};
use candle_nn::{Activation, VarBuilder};
use candle_transformers::models::{llama, qwen2, qwen3};

use super::numeric::relative_error;
use super::random::{config, parse, tensors};
use crate::checkpoint::Weights;
use crate::config::DecoderConfig;
use crate::decoder::Decoder;
use crate::kernels::Isa;
use crate::kv_cache::{Batch, DeviceBatch, DeviceCache, HostSlot, HostSpan};
use crate::manifest::manifest;
use crate::ops::{Loader, Place};

const CONTEXT: usize = 64;
const IDS: [u32; 21] = [1, 5, 300, 17, 17, 42, 9, 99, 600, 31, 7, 8, 250, 77, 640, 2, 3, 4, 511, 128, 64];

/// A decoder's weights in a directory.
fn checkpoint(change: impl Fn(&mut DecoderConfig)) -> (tempfile::TempDir, DecoderConfig) {
    let mut model = parse(&config());
    // candle's LLaMA knows no other head size than width / heads.
    model.decoder.attention.head_dim = model.decoder.width / model.decoder.attention.heads;
    change(&mut model.decoder);
    let dir = tempfile::tempdir().unwrap();
    let mut all = tensors(&manifest(&model), DType::F32);
    all.retain(|name, _| !name.contains("vision") && !name.contains("mm_projector"));
    candle_core::safetensors::save(&all, dir.path().join("model.safetensors")).unwrap();
    (dir, model.decoder)
}

/// Logits after all tokens, with the prompt in `first` tokens and the rest one by one.
fn run(dir: &tempfile::TempDir, config: &DecoderConfig, first: usize, portable: bool) -> Tensor {
    let weights = Weights::open(dir.path()).unwrap();
    let names = super::random::parse(&super::random::config()).names;
    let place = if portable { Place::candle(Device::Cpu, DType::F32) } else { Place::cpu() };
    let decoder = Decoder::load(config, &names, CONTEXT, Loader { weights: &weights, place: &place }).unwrap();
    let mut slot = HostSlot::default();
    slot.reserve(config.attention, config.layers, IDS.len()).unwrap();
    let cache = DeviceCache::new(&place, config.attention, config.layers, 3, CONTEXT).unwrap();
    let mut forward = |ids: &[u32], start: usize| {
        let tokens = ids.len();
        let mut batch = match (portable, start) {
            (false, _) => Batch::Host(Isa::detect(), vec![HostSpan { slot: &mut slot, start, tokens }]),
            (true, 0) => Batch::Device(DeviceBatch::prefill(&cache, 1, 0, tokens)),
            (true, _) => Batch::Device(DeviceBatch::decode(&cache, vec![1], vec![start])),
        };
        decoder.forward(&decoder.embed(ids).unwrap(), &mut batch).unwrap().of(0).to_vec()
    };
    let mut logits = forward(&IDS[..first], 0);
    for (i, id) in IDS.iter().enumerate().skip(first) {
        logits = forward(&[*id], i);
    }
    Tensor::new(logits, &Device::Cpu).unwrap()
}

fn builder(dir: &tempfile::TempDir) -> VarBuilder<'static> {
    let tensors = candle_core::safetensors::load(dir.path().join("model.safetensors"), &Device::Cpu).unwrap();
    VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu)
}

fn check(dir: &tempfile::TempDir, config: &DecoderConfig, want: &Tensor) {
    for portable in [false, true] {
        for first in [IDS.len(), IDS.len() - 1, 5, 1] {
            let error = relative_error(&run(dir, config, first, portable), want);
            assert!(error < 5e-6, "portable {portable}, prefill of {first}: {error:e}");
        }
    }
}

fn ids() -> Tensor {
    Tensor::new(&IDS, &Device::Cpu).unwrap().unsqueeze(0).unwrap()
}

#[test]
fn llama() {
    for tied in [false, true] {
        let (dir, config) = checkpoint(|c| c.tied = tied);
        let theirs = llama::Config {
            hidden_size: config.width,
            intermediate_size: config.mlp,
            vocab_size: config.vocab,
            num_hidden_layers: config.layers,
            num_attention_heads: config.attention.heads,
            num_key_value_heads: config.attention.kv_heads,
            use_flash_attn: false,
            rms_norm_eps: f64::from(config.eps),
            rope_theta: config.rope_theta as f32,
            bos_token_id: None,
            eos_token_id: None,
            rope_scaling: None,
            max_position_embeddings: CONTEXT,
            tie_word_embeddings: tied,
        };
        let mut cache = llama::Cache::new(false, DType::F32, &theirs, &Device::Cpu).unwrap();
        let model = llama::Llama::load(builder(&dir), &theirs).unwrap();
        check(&dir, &config, &model.forward(&ids(), 0, &mut cache).unwrap());
    }
}

#[test]
fn qwen2() {
    let (dir, config) = checkpoint(|c| c.qkv_bias = true);
    let theirs = qwen2::Config {
        vocab_size: config.vocab,
        hidden_size: config.width,
        intermediate_size: config.mlp,
        num_hidden_layers: config.layers,
        num_attention_heads: config.attention.heads,
        num_key_value_heads: config.attention.kv_heads,
        max_position_embeddings: CONTEXT,
        sliding_window: CONTEXT,
        max_window_layers: config.layers,
        tie_word_embeddings: false,
        rope_theta: config.rope_theta,
        rms_norm_eps: f64::from(config.eps),
        use_sliding_window: false,
        hidden_act: Activation::Silu,
    };
    let mut model = qwen2::ModelForCausalLM::new(&theirs, builder(&dir)).unwrap();
    check(&dir, &config, &model.forward(&ids(), 0).unwrap());
}

#[test]
fn qwen3_with_its_own_head_size() {
    let (dir, config) = checkpoint(|c| {
        c.qk_norm = true;
        c.attention.head_dim = 32;
    });
    let theirs = qwen3::Config {
        vocab_size: config.vocab,
        hidden_size: config.width,
        intermediate_size: config.mlp,
        num_hidden_layers: config.layers,
        num_attention_heads: config.attention.heads,
        head_dim: config.attention.head_dim,
        attention_bias: false,
        num_key_value_heads: config.attention.kv_heads,
        max_position_embeddings: CONTEXT,
        sliding_window: None,
        max_window_layers: config.layers,
        tie_word_embeddings: false,
        rope_theta: config.rope_theta,
        rms_norm_eps: f64::from(config.eps),
        use_sliding_window: false,
        hidden_act: Activation::Silu,
    };
    let mut model = qwen3::ModelForCausalLM::new(&theirs, builder(&dir)).unwrap();
    check(&dir, &config, &model.forward(&ids(), 0).unwrap());
}

#[test]
fn a_token_has_the_same_bits_in_a_prefill_and_in_a_step() {
    let (dir, config) = checkpoint(|c| c.qk_norm = true);
    let bits = |first| {
        let logits: Vec<f32> = run(&dir, &config, first, false).to_vec1().unwrap();
        logits.iter().map(|x| x.to_bits()).collect::<Vec<_>>()
    };
    let whole = bits(IDS.len());
    for first in [1, 7, 16, 20] {
        assert_eq!(bits(first), whole, "prefill of {first}");
    }
}
