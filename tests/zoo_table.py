"""The lines of `zoo_more`: class, kind of inputs, and what of its config is not as `zoo_more.SMALL` says; `+name` is a group.

Left out, as they cannot be traced: DBRX and JetMoE (loops over the experts that were chosen), NLLB-MoE and Switch Transformers
(likewise; with a rule for the class of their experts they can, see `test_own_experts`), FSMT (asks whether anything is padded),
I-BERT (asks for ranges), X-MOD (indexes by language), ViLT and Autoformer (size tensors by data); Reformer (asks whether
tensors are equal); Nystromformer and Informer (fail while exported, as does LongT5 without a mask); Gemma 3n, which writes into
its parameters in forward.
"""

from __future__ import annotations

from typing import Any

GROUPS: dict[str, dict[str, Any]] = {
    "conv": {
        "conv_dim": (16, 16),
        "conv_stride": (5, 4),
        "conv_kernel": (10, 4),
        "num_feat_extract_layers": 2,
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 4,
        "classifier_proj_size": 16,
    },
    "detection": {"use_pretrained_backbone": False, "use_timm_backbone": False, "backbone": None, "num_queries": 6},
    "swin": {"embed_dim": 16, "depths": [2, 1], "num_heads": [2, 4], "window_size": 4, "patch_size": 4},
}

SQUARED: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        (
            "DetrForObjectDetection",
            "ConditionalDetrForObjectDetection",
            "DeformableDetrForObjectDetection",
            "TableTransformerForObjectDetection",
            "YolosForObjectDetection",
            "RTDetrForObjectDetection",
        ),
        ("logits", "pred_boxes"),
    ),
    "DecisionTransformerModel": ("state_preds", "action_preds", "return_preds"),
    "DINOv3ViTModel": ("last_hidden_state",),
    "SiglipModel": ("logits_per_image",),
    "BlipForConditionalGeneration": ("logits",),
}
"""Classes of which these outputs are squared for a loss."""

TABLE = """
GPTNeoXForCausalLM tokens
GPTBigCodeForCausalLM tokens
OpenAIGPTLMHeadModel tokens
BloomForCausalLM tokens
FalconForCausalLM tokens
StableLmForCausalLM tokens
PersimmonForCausalLM tokens
CohereForCausalLM tokens
OlmoForCausalLM tokens
Olmo2ForCausalLM tokens
GemmaForCausalLM tokens
Qwen3ForCausalLM tokens
PhiForCausalLM tokens
Starcoder2ForCausalLM tokens
GraniteForCausalLM tokens
GraniteMoeForCausalLM tokens
GlmForCausalLM tokens
Glm4ForCausalLM tokens
SmolLM3ForCausalLM tokens
Ernie4_5ForCausalLM tokens
SeedOssForCausalLM tokens
ArceeForCausalLM tokens
ApertusForCausalLM tokens
HeliumForCausalLM tokens
DiffLlamaForCausalLM tokens
BitNetForCausalLM tokens
Qwen2MoeForCausalLM tokens
OlmoeForCausalLM tokens
BioGptForCausalLM tokens
AlbertForMaskedLM tokens
ElectraForMaskedLM tokens
FNetForMaskedLM tokens
ConvBertForMaskedLM tokens
SqueezeBertForMaskedLM tokens
ErnieForMaskedLM tokens
MegatronBertForMaskedLM tokens
RoFormerForMaskedLM tokens
NomicBertForMaskedLM tokens
LayoutLMForMaskedLM tokens
PLBartForConditionalGeneration tokens
PegasusForConditionalGeneration tokens
MBartForConditionalGeneration tokens
M2M100ForConditionalGeneration tokens
MvpForConditionalGeneration tokens
BlenderbotForConditionalGeneration tokens
BlenderbotSmallForConditionalGeneration tokens
MT5ForConditionalGeneration tokens
UMT5ForConditionalGeneration tokens
MinistralForCausalLM tokens head_dim=8
NemotronForCausalLM tokens num_key_value_heads=2
HunYuanDenseV1ForCausalLM tokens head_dim=8
GPTJForCausalLM tokens rotary_dim=4
GPTNeoForCausalLM tokens attention_types=[[['global','local'],1]] window_size=8
FalconForCausalLM/alibi tokens alibi=True new_decoder_architecture=True num_kv_heads=2
CodeGenForCausalLM tokens rotary_dim=4
MptForCausalLM tokens max_seq_len=64
Cohere2ForCausalLM tokens sliding_window=8
Olmo3ForCausalLM tokens sliding_window=8
Gemma3ForCausalLM tokens sliding_window=8
Qwen3NextForCausalLM tokens linear_num_value_heads=4 linear_num_key_heads=2 linear_key_head_dim=8
    linear_value_head_dim=8 layer_types=['linear_attention','full_attention']
MistralForCausalLM tokens sliding_window=8
DeepseekV2ForCausalLM tokens first_k_dense_replace=1 n_group=1 topk_group=1 topk_method='greedy' num_key_value_heads=4
    num_experts_per_tok=2
DeepseekV3ForCausalLM tokens first_k_dense_replace=1 n_group=2 topk_group=1 num_key_value_heads=4
Glm4MoeForCausalLM tokens n_group=1 topk_group=1 first_k_dense_replace=1
Exaone4ForCausalLM tokens sliding_window=8 sliding_window_pattern=2
Llama4ForCausalLM tokens intermediate_size_mlp=64 attention_chunk_size=8
Dots1ForCausalLM tokens n_routed_experts=4 num_experts_per_tok=2 n_group=1 topk_group=1 first_k_dense_replace=1
    n_shared_experts=1
MiniMaxForCausalLM tokens block_size=8
Lfm2ForCausalLM tokens layer_types=['conv','full_attention']
GptOssForCausalLM tokens sliding_window=8
JambaForCausalLM tokens attn_layer_period=2 attn_layer_offset=1 expert_layer_period=2 expert_layer_offset=1
    use_mamba_kernels=False mamba_d_state=4 mamba_dt_rank=4
Mamba2ForCausalLM tokens num_heads=8 head_dim=8 state_size=8 n_groups=2 chunk_size=8
FalconMambaForCausalLM tokens state_size=4
FalconH1ForCausalLM tokens mamba_d_ssm=64 mamba_n_heads=8 mamba_d_head=8 mamba_d_state=8 mamba_n_groups=2
    mamba_chunk_size=8
PhimoeForCausalLM tokens
RecurrentGemmaForCausalLM tokens block_types=['recurrent','attention'] attention_window_size=8
YosoForMaskedLM long
RwkvForCausalLM tokens context_length=64
xLSTMForCausalLM tokens num_blocks=2 num_heads=4 chunk_size=8
BambaForCausalLM tokens mamba_n_heads=8 mamba_d_head=8 mamba_d_state=8 mamba_chunk_size=8 attn_layer_indices=[1]
NemotronHForCausalLM tokens hybrid_override_pattern='M*' mamba_num_heads=8 mamba_head_dim=8 ssm_state_size=8 n_groups=2
    chunk_size=8
CTRLLMHeadModel tokens dff=64
XLNetLMHeadModel tokens use_mems_train=False use_mems_eval=False -max_position_embeddings
XGLMForCausalLM tokens attention_heads=4
RobertaForMaskedLM tokens max_position_embeddings=66
RobertaPreLayerNormForMaskedLM tokens max_position_embeddings=66
CamembertForMaskedLM tokens max_position_embeddings=66
XLMRobertaForSequenceClassification text max_position_embeddings=66
DebertaForMaskedLM tokens relative_attention=True pos_att_type=['c2p','p2c']
DebertaV2ForMaskedLM tokens relative_attention=True pos_att_type=['c2p','p2c'] position_buckets=8
MPNetForMaskedLM tokens max_position_embeddings=66
ModernBertForMaskedLM tokens local_attention=8
LongformerForMaskedLM tokens attention_window=[8,8] max_position_embeddings=66
BigBirdForMaskedLM tokens attention_type='original_full'
BigBirdForMaskedLM/sparse long block_size=4 num_random_blocks=2
FunnelForMaskedLM tokens block_sizes=[1,1] num_decoder_layers=1 d_head=8 -num_hidden_layers
MraForMaskedLM long =1
CanineForSequenceClassification text downsampling_rate=4 local_transformer_stride=8 num_hash_buckets=64
MobileBertForMaskedLM tokens intra_bottleneck_size=16 true_hidden_size=16
RemBertForMaskedLM tokens input_embedding_size=16 output_embedding_size=32
XLMWithLMHeadModel tokens emb_dim=32
FlaubertWithLMHeadModel tokens emb_dim=32
EsmForMaskedLM tokens position_embedding_type='rotary' mask_token_id=3 token_dropout=False vocab_size=96
EsmForMaskedLM/masked tokens position_embedding_type='absolute' mask_token_id=3 token_dropout=True vocab_size=96
LiltForSequenceClassification text channel_shrink_ratio=2 max_position_embeddings=66 hidden_size=48
PegasusXForConditionalGeneration tokens num_global_tokens=4 block_size=8
MarianMTModel tokens decoder_vocab_size=96
BigBirdPegasusForConditionalGeneration tokens attention_type='original_full'
LEDForConditionalGeneration tokens attention_window=[8,8] max_encoder_position_embeddings=64
    max_decoder_position_embeddings=64
LongT5ForConditionalGeneration padded local_radius=3 global_block_size=4
LongT5ForConditionalGeneration/global padded local_radius=3 global_block_size=4 encoder_attention_type='transient-global'
ProphetNetForConditionalGeneration tokens ngram=2 -num_hidden_layers
SwinForImageClassification pixels +swin -num_attention_heads -num_hidden_layers -num_layers
Swinv2ForImageClassification pixels +swin -num_attention_heads -num_hidden_layers -num_layers
BeitForImageClassification pixels use_relative_position_bias=True
DeiTForImageClassification pixels
Dinov2ForImageClassification pixels
Dinov2WithRegistersForImageClassification pixels
DINOv3ViTModel image
PvtForImageClassification pixels depths=[1,1,1,1] hidden_sizes=[8,16,16,32] num_attention_heads=[1,2,2,4]
    patch_sizes=[4,2,2,2]
PvtV2ForImageClassification pixels depths=[1,1,1,1] hidden_sizes=[8,16,16,32] num_attention_heads=[1,2,2,4]
MobileViTForImageClassification pixels hidden_sizes=[16,16,16] neck_hidden_sizes=[8,8,16,16,16,16,32] patch_size=2
MobileViTV2ForImageClassification large width_multiplier=0.25 patch_size=2 image_size=64
MobileNetV1ForImageClassification pixels depth_multiplier=0.25
MobileNetV2ForImageClassification pixels depth_multiplier=0.25
EfficientNetForImageClassification pixels width_coefficient=0.25 depth_coefficient=0.3 hidden_dim=320
RegNetForImageClassification pixels embedding_size=8 hidden_sizes=[8,16,16,32] depths=[1,1,1,1] groups_width=4
    layer_type='y'
BitForImageClassification pixels embedding_size=8 hidden_sizes=[8,16,16,32] depths=[1,1,1,1] num_groups=2
LevitForImageClassification pixels hidden_sizes=[16,24,32] num_attention_heads=[2,3,4] depths=[1,1,1] key_dim=[4,4,4]
    patch_size=16
ConvNextV2ForImageClassification pixels depths=[1,2] hidden_sizes=[8,16] num_stages=2 patch_size=4
FocalNetForImageClassification pixels embed_dim=8 depths=[1,1] focal_levels=[2,2] focal_windows=[3,3] patch_size=4
PoolFormerForImageClassification pixels hidden_sizes=[8,16,16,32] depths=[1,1,1,1]
SwiftFormerForImageClassification pixels embed_dims=[8,16,16,32] depths=[1,1,1,1]
ViTMSNForImageClassification pixels
ViTMAEForPreTraining image mask_ratio=0.5 decoder_hidden_size=32 decoder_num_attention_heads=4
    decoder_num_hidden_layers=1 decoder_intermediate_size=64
IJepaForImageClassification pixels
DPTForSemanticSegmentation map num_hidden_layers=4 backbone_out_indices=[0,1,2,3] neck_hidden_sizes=[8,8,16,16]
    fusion_hidden_size=16 is_hybrid=False
VideoMAEForVideoClassification video num_frames=4 tubelet_size=2
TimesformerForVideoClassification video num_frames=4
VivitForVideoClassification video num_frames=4 tubelet_size=[2,8,8]
HubertForSequenceClassification wave +conv
WavLMForSequenceClassification wave +conv
Wav2Vec2ForCTC spelled +conv
HubertForCTC spelled +conv
WavLMForCTC spelled +conv
UniSpeechSatForCTC spelled +conv
SEWForSequenceClassification wave +conv
UniSpeechForSequenceClassification wave +conv
UniSpeechSatForSequenceClassification wave +conv
Data2VecAudioForSequenceClassification wave +conv conv_pos_kernel_size=5 num_conv_pos_embeddings=2
Data2VecTextForMaskedLM tokens max_position_embeddings=66
Wav2Vec2ConformerForSequenceClassification wave +conv
Wav2Vec2BertForSequenceClassification features feature_projection_input_dim=8 classifier_proj_size=16 add_adapter=False
ASTForAudioClassification spectrum max_length=32 num_mel_bins=16 frequency_stride=8 time_stride=8
SpeechT5ForSpeechToText spoken +conv
Speech2TextForConditionalGeneration heard input_feat_per_channel=16 conv_channels=16
MoonshineForConditionalGeneration spoken
TimeSeriesTransformerForPrediction series prediction_length=4 context_length=8 lags_sequence=[1,7] num_time_features=1
PatchTSTForPrediction channels context_length=16 prediction_length=4 num_input_channels=2 patch_length=4 patch_stride=4
PatchTSMixerForPrediction channels context_length=16 prediction_length=4 num_input_channels=2 patch_length=4
    patch_stride=4
DecisionTransformerModel decisions state_dim=3 act_dim=2 max_ep_len=32
PerceiverForMaskedLM bytes num_latents=8 d_latents=16 num_self_attends_per_block=1 num_self_attention_heads=4
    num_cross_attention_heads=4 max_position_embeddings=16
SiglipModel captions text_config=@words vision_config=@image
BlipForConditionalGeneration captions text_config=@words vision_config=@image
LlavaForConditionalGeneration seen text_config=@llama vision_config=@clip image_token_index=95 vision_feature_layer=-2
    image_seq_length=16
DetrForObjectDetection picture +detection backbone_config=@resnet
ConditionalDetrForObjectDetection picture +detection backbone_config=@resnet
DeformableDetrForObjectDetection picture +detection backbone_config=@resnet3
TableTransformerForObjectDetection picture +detection backbone_config=@resnet
YolosForObjectDetection picture image_size=[64,64] num_detection_tokens=6
RTDetrForObjectDetection picture num_queries=6 encoder_in_channels=[16,16,32] encoder_hidden_dim=32
    decoder_in_channels=[32,32,32] backbone_config=@rt_resnet
AfmoeForCausalLM tokens
AriaTextForCausalLM tokens
BailingHybridForCausalLM tokens
BeamForCausalLM tokens
BertGenerationDecoder tokens
Cohere2MoeForCausalLM tokens
CpmAntForCausalLM tokens
CwmForCausalLM tokens
DeepseekV4ForCausalLM tokens
DogeForCausalLM tokens
Emu3ForCausalLM tokens
Ernie4_5_MoeForCausalLM tokens
ExaoneMoeForCausalLM tokens
FlexOlmoForCausalLM tokens
FlintForCausalLM tokens
GPTNeoXJapaneseForCausalLM tokens
GraniteSWAForCausalLM tokens
GraniteMoeSWAForCausalLM tokens
GraniteMoeSharedForCausalLM tokens
HrmTextForCausalLM tokens
HYV3ForCausalLM tokens
HYV4ForCausalLM tokens
HyperCLOVAXForCausalLM tokens
Inkling2ForCausalLM tokens
InklingForCausalLM tokens
Jais2ForCausalLM tokens
Kolibri1ForCausalLM tokens
LagunaForCausalLM tokens
Lfm3ForCausalLM tokens
MarianForCausalLM tokens
MellumForCausalLM tokens
MiMoV2FlashForCausalLM tokens
MiniMaxM2ForCausalLM tokens
MiniMaxM3VLForCausalLM tokens
Ministral3ForCausalLM tokens
MllamaForCausalLM tokens
ModernBertDecoderForCausalLM tokens
MoshiForCausalLM tokens
NanoChatForCausalLM tokens
Qwen3_5MoeForCausalLM tokens
SolarOpenForCausalLM tokens
TrOCRForCausalLM tokens
VaultGemmaForCausalLM tokens
XLMRobertaXLForCausalLM tokens
EuroBertForMaskedLM tokens
GteForMaskedLM tokens
JinaEmbeddingsV3ForMaskedLM tokens
NystromformerForMaskedLM tokens
UltrabertForMaskedLM tokens
"""
