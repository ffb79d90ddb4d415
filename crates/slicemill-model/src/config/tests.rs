//! Configs of every family, as published and broken.

use serde_json::{Value, json};
use slicemill_core::{CandidateRule, OverviewPosition, Partition, Rounding};

use super::vision::layers_run;
use super::*;

fn embedded() -> Value {
    serde_json::from_slice(include_bytes!("../../embedded/config.json")).expect("JSON")
}

fn read(json: &Value) -> Result<ModelConfig, String> {
    ModelConfig::parse(&serde_json::to_vec(json).unwrap(), "dir/config.json").map_err(|e| e.to_string())
}

fn read_with(json: &Value, preprocessor: &Value, generation: &Value, has: &[&str]) -> Result<ModelConfig, String> {
    let [config, preprocessor, generation] = [json, preprocessor, generation].map(|v| serde_json::to_vec(v).unwrap());
    let file = |bytes| ConfigFile { bytes, origin: "config.json" };
    let files = ConfigFiles {
        config: file(&config),
        preprocessor: Some(file(&preprocessor)),
        generation: Some(file(&generation)),
        tower: None,
    };
    ModelConfig::read(&files, &|name| has.contains(&name)).map_err(|e| e.to_string())
}

/// LLaVA-UHD v1 13B, as its training code writes it.
fn llava_uhd() -> Value {
    json!({
        "architectures": ["LlavaLlamaForCausalLM"], "model_type": "llava_llama", "hidden_size": 5120,
        "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40, "num_key_value_heads": 40,
        "hidden_act": "silu", "rms_norm_eps": 1e-5, "vocab_size": 32000, "max_position_embeddings": 4096,
        "tokenizer_model_max_length": 2048, "tie_word_embeddings": false, "bos_token_id": 1, "eos_token_id": 2,
        "mm_vision_tower": "./pretrained_models/clip-vit-large-patch14-336",
        "mm_projector_type": "adapt_spatial_resampler", "mm_hidden_size": 1024, "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch", "mm_patch_merge_type": "flat", "image_aspect_ratio": "pad",
        "mm_use_im_start_end": false, "rope_scaling": null,
    })
}

/// MiniCPM-V of a version, with what its published config says.
fn minicpm(version: Value) -> Value {
    json!({
        "model_type": "minicpmv", "version": version, "hidden_size": 3584, "intermediate_size": 18944,
        "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4, "hidden_act": "silu",
        "rms_norm_eps": 1e-6, "rope_theta": 1e6, "vocab_size": 151666, "max_position_embeddings": 32768,
        "tie_word_embeddings": false, "bos_token_id": 151643, "eos_token_id": 151645, "query_num": 64,
        "drop_vision_last_layer": false, "image_size": 448, "use_image_id": true,
        "slice_config": {"max_slice_nums": 9, "patch_size": 14, "model_type": "minicpmv"},
        "vision_config": {"hidden_size": 1152, "image_size": 980, "intermediate_size": 4304,
            "model_type": "siglip", "num_attention_heads": 16, "num_hidden_layers": 27, "patch_size": 14},
    })
}

#[test]
fn the_embedded_config_is_read() {
    let config = read(&embedded()).unwrap();
    assert_eq!((config.family, config.policy.name.as_str()), (Family::Slicemill, "llava-uhd-raw"));
    assert_eq!(config.vision.grid * config.vision.patch, 112);
    assert_eq!(config.token_rule(), TokenRule::Queries(16));
    assert_eq!((config.prompt.bos, config.prompt_tokens_max), (Some(1), None));
}

#[test]
fn llava_uhd_selects_what_its_code_does() {
    let config = read(&llava_uhd()).unwrap();
    assert_eq!((config.family, config.policy.name.as_str()), (Family::LlavaUhd, "llava-uhd"));
    assert_eq!((config.policy.side, config.policy.pre_resize, config.policy.max_slices), (336, Some(1024), 7));
    assert_eq!((config.vision.layers, config.vision.grid, config.vision.width), (23, 24, 1024));
    assert!(matches!(config.projector, ProjectorConfig::Spatial { heads: 40, rounding: WindowRounding::F32 }));
    assert_eq!((config.context_tokens_max, config.prompt_tokens_max), (4096, Some(2048)));
    assert_eq!(
        config.prompt.views,
        ViewTokens::Separators { column: Separator::Id(29892, ","), row: Separator::Id(13, "\n") }
    );
    assert_eq!(config.normalisation, Normalisation::CLIP);
    assert_eq!(config.names.tower.as_deref(), Some("./pretrained_models/clip-vit-large-patch14-336"));
    assert_eq!(config.schema(), Schema::CommaNewline);
}

#[test]
fn the_64_query_code_is_known_by_its_tensors_or_its_class() {
    let mut json = llava_uhd();
    json["mm_projector_type"] = json!("mlp2x_gelu");
    assert_eq!(read(&json).unwrap().family, Family::Llava15);
    let with_query = read_with(&json, &json!({}), &json!({}), &["model.mm_projector.query"]).unwrap();
    assert_eq!(with_query.family, Family::LlavaUhd64);
    json["architectures"] = json!(["adapt_LlavaLlamaForCausalLM"]);
    json["model_type"] = json!("llava_uhd");
    let config = read(&json).unwrap();
    assert_eq!((config.family, config.policy.pre_resize), (Family::LlavaUhd64, None));
    assert_eq!(config.prompt_tokens_max, Some(4096), "its code ignores the config's limit");
    assert_eq!(config.token_rule(), TokenRule::Queries(64));
}

#[test]
fn llava_15_is_one_square_of_patches_in_both_layouts() {
    let mut published = llava_uhd();
    published["model_type"] = json!("llava");
    published["mm_projector_type"] = json!("mlp2x_gelu");
    published["mm_vision_tower"] = json!("openai/clip-vit-large-patch14-336");
    // As the converted 7B says it: almost everything is left to the defaults of transformers.
    let converted = json!({
        "model_type": "llava", "architectures": ["LlavaForConditionalGeneration"], "image_token_index": 32000,
        "projector_hidden_act": "gelu", "vision_feature_layer": -2, "vision_feature_select_strategy": "default",
        "text_config": {"model_type": "llama", "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
            "vocab_size": 32064},
        "vision_config": {"hidden_size": 1024, "image_size": 336, "intermediate_size": 4096,
            "model_type": "clip_vision_model", "num_attention_heads": 16, "num_hidden_layers": 24, "patch_size": 14,
            "projection_dim": 768, "vocab_size": 32000},
    });
    for (json, width, decoder) in [(&published, 5120, "model"), (&converted, 4096, "language_model.model")] {
        let config = read(json).unwrap();
        assert_eq!((config.family, config.policy.name.as_str()), (Family::Llava15, "pad-square"));
        assert_eq!((config.projector, config.token_rule()), (ProjectorConfig::Mlp, TokenRule::Patches));
        assert_eq!((config.decoder.width, config.names.decoder.as_str()), (width, decoder));
        assert_eq!((config.vision.layers, config.schema()), (23, Schema::Plain));
        assert_eq!((config.prompt.bos, config.prompt.eos.as_slice()), (Some(1), [2].as_slice()));
    }
    let newer = read_with(&converted, &json!({}), &json!({}), &["model.language_model.norm.weight"]).unwrap();
    assert_eq!(newer.names.decoder, "model.language_model");
}

#[test]
fn minicpm_versions_differ_in_their_language_model() {
    for (version, family, bias, norm) in [
        (json!(2.6), Family::MiniCpmV26, true, false),
        (json!("2.6"), Family::MiniCpmV26, true, false),
        (json!(4.0), Family::MiniCpmV40, false, false),
        (json!(4.5), Family::MiniCpmV45, false, true),
    ] {
        let config = read(&minicpm(version)).unwrap();
        assert_eq!((config.family, config.decoder.qkv_bias, config.decoder.qk_norm), (family, bias, norm));
        let policy = &config.policy;
        assert_eq!((policy.side, policy.max_slices, policy.rounding), (448, 9, Rounding::HalfEven));
        assert_eq!(
            (policy.overview, policy.partition),
            (OverviewPosition::First, Partition::Adaptive(CandidateRule::Capped))
        );
        assert_eq!((config.vision.layers, config.vision.grid, config.vision.kind), (27, 70, VisionKind::Siglip));
        assert!(matches!(
            config.projector,
            ProjectorConfig::Resampler { queries: 64, heads: 28, positions: Positions::Computed }
        ));
        assert_eq!((config.normalisation, config.schema()), (Normalisation::HALF, Schema::Tagged));
    }
}

#[test]
fn minicpm_takes_what_the_other_files_say() {
    let preprocessor = json!({"max_slice_nums": 4, "scale_resolution": 392, "use_image_id": false, "im_start": "<i>"});
    let generation = json!({"eos_token_id": [151_645, 151_643]});
    let config = read_with(&minicpm(json!(2.6)), &preprocessor, &generation, &[]).unwrap();
    assert_eq!((config.policy.max_slices, config.policy.side), (4, 392));
    assert_eq!(config.prompt.eos, [151_643, 151_645]);
    let ViewTokens::Tags(tags) = config.prompt.views else { panic!("tags") };
    assert_eq!((tags.image_id, tags.image.0.as_str(), tags.image.1.as_str()), (None, "<i>", "</image>"));
    let mut json = minicpm(json!(2.6));
    json.as_object_mut().unwrap().remove("drop_vision_last_layer");
    assert_eq!(read(&json).unwrap().vision.layers, 26, "the class default of the published code");
    json["slice_mode"] = json!(false);
    assert_eq!(read(&json).unwrap().policy.name, "whole");
}

#[test]
fn longrope_follows_transformers() {
    let mut json = minicpm(json!(4.0));
    json["head_dim"] = json!(8);
    json["max_position_embeddings"] = json!(4096);
    json["rope_scaling"] = json!({"rope_type": "longrope", "short_factor": [1.0, 1.1, 1.2, 1.3],
        "long_factor": [2.0, 2.1, 2.2, 2.3], "original_max_position_embeddings": 1024});
    let RopeScaling::Longrope { short, long, original_tokens, attention } = read(&json).unwrap().decoder.rope_scaling
    else {
        panic!("longrope")
    };
    assert_eq!((short[1], long[3], original_tokens), (1.1, 2.3, 1024));
    assert!((attention - (1.0 + 4.0_f64.ln() / 1024.0_f64.ln()).sqrt()).abs() < 1e-12);
    for (key, value) in [("original_max_position_embeddings", json!(1)), ("attention_factor", json!(-1.0))] {
        let mut broken = json.clone();
        broken["rope_scaling"][key] = value;
        assert!(read(&broken).is_err(), "{key}");
    }
    json["rope_scaling"]["short_factor"] = json!([1.0]);
    assert!(read(&json).unwrap_err().contains("short_factor has 1 values; half of head_dim 8"), "lengths");
    json["rope_scaling"] = json!({"type": "yarn", "factor": 2.0});
    assert!(read(&json).unwrap_err().contains("\"yarn\""));
    json["rope_scaling"] = json!({"type": "linear", "factor": 2.0});
    assert_eq!(read(&json).unwrap().decoder.rope_scaling, RopeScaling::Linear(2.0));
}

#[test]
fn select_layer_means_what_the_reference_means() {
    for (select, all, run) in [(-1, 24, Some(24)), (-2, 24, Some(23)), (0, 24, Some(0)), (-25, 24, Some(0))] {
        assert_eq!(layers_run(select, all).ok(), run);
    }
    for select in [-26, 25] {
        assert!(layers_run(select, 24).is_err());
    }
}

#[test]
fn what_is_wrong_is_named() {
    let check = |json: &Value, pointer: &str, value: Value, expected: &str| {
        let mut json = json.clone();
        *json.pointer_mut(pointer).expect("key") = value;
        let text = read(&json).unwrap_err();
        assert!(text.starts_with("dir/config.json: ") && text.contains(expected), "{pointer}: {text}");
    };
    let own = embedded();
    check(&own, "/model_type", json!("mistral"), "model_type \"mistral\" is not supported");
    check(&own, "/hidden_size", json!(null), "hidden_size is missing");
    check(&own, "/hidden_size", json!(0), "hidden_size is 0");
    check(&own, "/num_key_value_heads", json!(4), "not a multiple of num_key_value_heads 4");
    check(&own, "/mm_projector_type", json!("ldp"), "mm_projector_type \"ldp\" is not supported");
    check(&own, "/mm_num_queries", json!(15), "not a square");
    check(&own, "/mm_vision_select_layer", json!(-9), "does not exist in a tower of 5 layers");
    check(&own, "/vision_config/patch_size", json!(16), "must be equal");
    check(&own, "/vision_config", json!(null), "neither vision_config nor mm_vision_tower");
    check(&own, "/slicemill/policy", json!("best"), "there are llava-uhd,");
    check(&own, "/slicemill/prompt_template", json!("{image}"), "{question} exactly once");
    check(&own, "/slicemill/image_std", json!([0.0, 1.0, 1.0]), "image_std is 0");
    check(&own, "/eos_token_id", json!("x"), "did not match");
    let uhd = llava_uhd();
    check(&uhd, "/mm_vision_tower", json!("elsewhere/vit"), "the vision tower \"elsewhere/vit\"");
    check(&uhd, "/mm_projector_type", json!("adapt_spatial_resampler_v2"), "adapt_spatial_resampler (LLaVA-UHD v1)");
    check(&uhd, "/mm_projector_type", json!("resampler"), "the section slicemill is missing");
    check(&uhd, "/mm_patch_merge_type", json!("spatial_unpad"), "LLaVA-1.6");
    check(&uhd, "/image_aspect_ratio", json!("anyres"), "LLaVA-1.6");
    let mut uhd = llava_uhd();
    uhd["tokenizer_model_max_length"] = json!(0);
    assert!(read(&uhd).unwrap_err().contains("tokenizer_model_max_length is 0"));
    let mut windowed = minicpm(json!(2.6));
    windowed["use_sliding_window"] = json!(true);
    assert!(read(&windowed).unwrap_err().contains("use_sliding_window"));
    let std = json!({"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.0, 0.5]});
    assert!(read_with(&llava_uhd(), &std, &json!({}), &[]).unwrap_err().contains("image_std"));
    let minicpm = minicpm(json!(2.6));
    check(&minicpm, "/num_hidden_layers", json!(16_777_216), "it must be from 1 to 4096");
    check(&minicpm, "/version", json!(2.5), "version 2.5 is not supported");
    check(&minicpm, "/version", json!(null), "the key version is missing");
    check(&minicpm, "/vision_config/model_type", json!("idefics2"), "only \"siglip\"");
}
