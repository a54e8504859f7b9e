"""Settings of the models: their queue, their device, and those of each task."""

from __future__ import annotations

from dataclasses import dataclass, replace

from predictors.settings.bounds import AUTO_ON_OFF, SettingsGroup, bounded

ATTENTION = (
    "auto", "cudnn", "flash", "flash_attn_3", "fa3_fwd", "flash_attn_2", "efficient", "sdpa",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class QueueSettings(SettingsGroup):
    """The admission queue. It is bounded, and a full queue is answered at once."""

    section = "queue"

    capacity: int = bounded(64, least=1)
    """Jobs that may wait, in addition to those that run. The next one is refused at once. While
    several callers wait, each may hold half of the places, and up to half as many more wait."""
    capacity_s: float = 0.0
    """Engine seconds of work that may wait, as learned from finished jobs, beside `capacity`. 0 is
    no limit: what can't be done before its deadline is refused in any case."""
    overload_status: int = bounded(503, choices=(503, 429))
    """Status of a request that meets a full queue. Gateways retry 503 on another replica; clients
    back off on 429."""
    refusals_per_s: float = 200.0
    """Refusals of a full queue or a used up limit that one caller gets at once in a second. Further
    ones come 0.25 s late, so that a caller who asks again at once takes little time from others. 0
    delays none. Behind a gateway see `access.caller_header`: without it all are one caller."""
    skip_window: int = 8
    """If the job whose turn it is does not fit, this many jobs behind it may be admitted before
    it."""
    skip_max_wait_s: float = 30.0
    """Once a job that did not fit has waited this long, no other one of its caller is admitted
    before it; this long after its turn, no job at all. A job that has waited this long goes before
    its caller's jobs of higher priority."""
    default_timeout_s: float = 600.0
    """Deadline of a request that sets none. 0 means no deadline."""
    stall_timeout_s: float = 120.0
    """If there is work and no step has finished for this long, the engine counts as stalled and
    liveness fails."""


@dataclass(frozen=True, slots=True)
class ComputeSettings(SettingsGroup):
    """Device, precision and compilation, for all models of the process."""

    section = "compute"

    device: str = "auto"
    """`auto` (CUDA if there is a GPU), `cpu`, `cuda` or `cuda:N`."""
    dtype: str = bounded("auto", choices=("auto", "float32", "bfloat16", "float16"))
    """`auto` (bfloat16 on CUDA, float32 on the CPU), `float32`, `bfloat16` or `float16`."""
    compile: str = bounded("auto", choices=("auto", "off", "aot_eager", "inductor"))
    """`auto` (`inductor` on CUDA, `off` on the CPU), `off`, `aot_eager` or `inductor`. On the CPU
    Inductor needs a C++ compiler."""
    attention: str = bounded("auto", choices=ATTENTION)
    """Attention kernel on CUDA. `auto` measures the installed ones while loading and takes the
    fastest."""
    threads: int = 0
    """Intra-op threads of torch on the CPU. 0 leaves torch's default."""
    cache_dir: str = ""
    """Folder that keeps compiled code between starts. Empty: Triton and torch keep theirs where
    they always do. The content is executed, so only the operator may have write access: servers may
    mount it read-only, and a folder that anyone may write is not used."""
    weights_variant: str = ""
    """Variant of the weights files that is read where a folder has it, such as `fp16` for
    `model.fp16.safetensors`. Empty: the plain files, or the only variant there is."""
    verify: str = bounded("auto", choices=AUTO_ON_OFF)
    """Compares the checkpoint's files with recorded digests before loading. `auto`: where the
    folder has a `model.sha256`. `on`: else with what a hub left beside the files, and a folder
    without either is refused."""


MOST_RANK = 1024
"""The largest rank of an adapter that is read at all."""


@dataclass(frozen=True, slots=True)
class FluxSettings(SettingsGroup):
    """Text-to-image models (FLUX.1)."""

    section = "flux"

    memory_fraction: float = bounded(0.0, most=1.0)
    """Part of the GPU's memory that each picture model may take, such as 0.6, beside other models
    of the process. A start whose weights and work need more is refused. 0: not divided."""
    slots: int = bounded(4, least=1)
    """Pictures in progress at once; half as many more of callers that come while others hold all,
    which take turns with them. On a GPU the warm-up measures how many of them share a pass;
    those of the tier `lossless` never share one there."""
    max_pixels: int = 1536 * 1536
    """Largest width x height that is accepted."""
    max_side: int = 2048
    """Largest width or height, in pixels."""
    min_side: int = 64
    """Smallest width or height, in pixels."""
    max_steps: int = 100
    """Largest `num_inference_steps`."""
    default_steps: int = 0
    """Steps of a request that names none. 0 takes the checkpoint's: 50 of FLUX.1-Fill, 28 if it has
    a guidance embedding, otherwise 4."""
    default_size: str = ""
    """Size (`WxH`) of a request that names none. Empty takes the checkpoint's (`sample_size` of its
    autoencoder, squared)."""
    sizes: str = ""
    """Sizes (`WxH`, comma-separated) that are compiled and warmed before the model is ready. Empty
    takes the default size only."""
    warm: str = bounded("all", choices=("all", "minimal"))
    """Promised shapes that are compiled and warmed before the model is ready: `all`, or `minimal`,
    which is the default size in the default tier, one picture at a time. The others then follow
    between requests; a request for one of them waits until it is warmed, before all others."""
    unpromised: str = bounded("serve", choices=("serve", "refuse"))
    """Requests for a size outside of `sizes`: `serve` draws them without compiling, `refuse`
    answers with 400 and the list of sizes."""
    max_sequence_length: int = 0
    """T5 tokens per prompt. 0 takes the checkpoint's (the tokenizer's limit, at most 512 with a
    guidance embedding and 256 without)."""
    prompt_cache_bytes: int = 256 * 2**20
    """Largest size of the prompt-embedding cache."""
    png_level: int = bounded(1, most=9)
    """Compression level of PNG output. 0 stores, 1 is ISA-L's fast deflate, 2 to 9 are zlib's: ten
    times slower, and smaller only for drawings."""
    tiers: str = "auto"
    """Quality tiers that are loaded, comma-separated: `lossless`, `high` (fp8), `turbo`. `auto`
    loads all, but `high` only on GPUs with fp8 units."""
    default_tier: str = ""
    """Tier of a request that names none. Empty takes the first that is loaded of `lossless`,
    `high`, `turbo`."""
    fp8_attention: bool = True
    """Lets the tiers with fp8 weights use fp8 in attention too, if FlashAttention 3 (`pip install
    vision-predictors[fa3]`) and a Hopper GPU are present."""
    conditioning_precision: str = bounded("auto", choices=("auto", "fp8"))
    """`fp8`: T5 and the modulation are quantised while loading, which saves 7.3 GiB of GPU memory
    and changes pictures. It needs `tiers` of fp8 weights alone. `auto`: `compute.dtype`."""
    preview: str = bounded("auto", choices=("auto", "linear", "vae"))
    """Decoder of partial pictures: `vae` (the model's own), `linear` (a projection of each latent
    to a colour, fitted during the warm-up and scaled up) or `auto`: on a GPU `linear` if its error
    is at most half of what the picture spreads, else `vae`."""
    lora_max_active: int = bounded(0, least=0, most=1000)
    """Adapters (LoRA) of `lora_max_rank` that the device holds at once, or accordingly more of a
    smaller rank. 0: as many as are given at the start; if none is, adapters are switched off and
    take no memory and no graphs."""
    lora_max_rank: int = bounded(0, least=0, most=MOST_RANK)
    """Largest rank of an adapter, and of all adapters of one picture together. 0: that of the
    largest one that is given at the start, at least 64."""
    edits: str = bounded("auto", choices=("auto", "on", "off"))
    """Pictures as inputs (image to image, inpainting, FLUX.1-Fill, -Kontext), for which the
    encoder of the autoencoder is loaded. `auto`: if the checkpoint stores it. FLUX.1's takes 69 MB
    of GPU memory, and its graphs share the decoder's work memory. `off`: such requests get 400."""
    kind: str = bounded("auto", choices=("auto", "text", "fill", "kontext"))
    """Kind of the checkpoint. `auto` reads it from the folder. FLUX.1-Kontext has the sizes of
    FLUX.1-dev: only `_class_name` in `model_index.json` tells them apart, so name it if that was
    lost."""
    age_limit_s: float = 30.0
    """The picture with the fewest steps left goes first, until another one has been passed over for
    this many seconds in all, or for a quarter of the time to its deadline. 0 always serves the one
    that has waited longest."""
    provenance: str = bounded("xmp", choices=("xmp", "c2pa", "none"))
    """Mark of origin in each file: `xmp` says that a model made it, with tool and model; `c2pa`
    adds a manifest signed with the operator's key (`pip install vision-predictors[c2pa]`); `none`
    leaves files without a mark."""
    c2pa_cert_file: str = ""
    """File with the signer's certificate and the intermediate ones below its root, as PEM, for
    `provenance` `c2pa`."""
    c2pa_key_file: str = ""
    """File with that certificate's private key, as PEM without a password. Its kind sets the
    algorithm: P-256, P-384, P-521, Ed25519, or RSA of at least 2048 bits (PS256)."""
    checker: str = ""
    """Folder of an image-classification checkpoint of transformers that judges each picture before
    it is sent. Empty: no check."""
    checker_labels: str = ""
    """Labels of that checkpoint, comma-separated, that stand for what must not be sent."""
    checker_threshold: float = bounded(0.5, most=1.0)
    """A picture is not sent once the probabilities of `checker_labels` add up to this; of a
    checkpoint for several labels at once, once one of them reaches it."""
    checker_action: str = bounded("refuse", choices=("refuse", "blank"))
    """`refuse` fails the request with 400 (`content_policy_violation`); `blank` sends a black
    picture instead, and says so."""

    @property
    def adapter_rank(self) -> int:
        """`lora_max_rank`, or the least of it where none was given."""
        return self.lora_max_rank or 64

    @property
    def of_drawing(self) -> FluxSettings:
        """These settings with the defaults of those on which no compiled code depends, so that it
        is kept when they change."""
        own = FluxSettings()
        kept = {name: getattr(own, name) for name in NOT_OF_DRAWING}
        return replace(self, **kept)


NOT_OF_DRAWING = (
    "provenance", "c2pa_cert_file", "c2pa_key_file", "checker", "checker_labels",
    "checker_threshold", "checker_action", "warm",
)  # fmt: skip
"""Settings of `FluxSettings` that no step on the device depends on."""


@dataclass(frozen=True, slots=True)
class QwenVLSettings(SettingsGroup):
    """Chat models that read pictures (Qwen2.5-VL and other models of the chat family)."""

    section = "qwen_vl"

    memory_fraction: float = bounded(0.0, most=1.0)
    """Part of the GPU's memory that each chat model may take, such as 0.35, beside other models of
    the process: weights, graphs and the pages that are left. A start that needs more is refused. 0:
    what is free once its weights are loaded, which depends on who loads first."""
    slots: int = 0
    """Sequences that decode together. 0 takes 8 on the CPU and 64 on a GPU. Half as many more, of
    callers that come while others hold all, take turns with them."""
    page_tokens: int = 0
    """Tokens per page of the KV cache. 0 takes 16 on the CPU and 64 on a GPU."""
    kv_tokens: int = 0
    """Size of the KV cache in tokens. 0 takes `max_context` for every slot, also for those of
    callers that come while others hold all; on a GPU for `slots` + 1, as far as the memory allows.
    One context, a sixteenth at most, is left for callers that come later."""
    max_context: int = 0
    """Longest prompt plus answer, in tokens. 0 takes the checkpoint's limit, at most 4096 on the
    CPU and 32768 on a GPU."""
    prefill_chunk: int = 0
    """Prompt tokens per prefill step. Running sequences decode between the chunks. 0 takes 256 on
    the CPU and 1536 on a GPU, where several prompts share a step."""
    prefill_steps: float = 0.0
    """Most decode steps that a pass over prompts may add while sequences decode, by times that are
    measured at the start: with `warm` minimal once all passes are warm. The vision tower is not
    counted; a step then encodes one picture. Smaller values shorten the gaps between tokens and
    delay first tokens. A pass that costs about one reading of the weights always runs. 0:
    `prefill_chunk` alone cuts the passes. Without effect where prompts do not share a step: on the
    CPU, and with `deterministic`."""
    mixed_passes: bool = True
    """On a GPU, a step that reads prompts while sequences decode takes both through the weights in
    one pass instead of two, for which the start captures more graphs. Without effect on the CPU,
    with `deterministic`, with `precision` fp8, and where the weights leave less than 10 GB; a step
    in which a row has an adapter keeps two passes."""
    default_max_tokens: int = 0
    """`max_tokens` of a request that names none, limited to what the context leaves. 0 takes all
    that it leaves."""
    min_pixels: int = 0
    """Smallest area of a picture after resizing, in pixels. 0 takes the checkpoint's."""
    max_pixels: int = 0
    """Largest area of a picture after resizing, in pixels, that a request may ask for. 0 takes the
    checkpoint's, at most 1,103,872, which leaves a picture of 1024x1024 as it is."""
    default_max_pixels: int = 0
    """Largest area of a picture whose request asks for none. 0 takes `max_pixels`."""
    warm: str = bounded("all", choices=("all", "minimal"))
    """Promised passes that are compiled and warmed before the model is ready: `all`, or `minimal`,
    which are those of a short text, of a picture of `default_max_pixels`, and of one answer at a
    time. The others then follow between requests; a request that can't do without one of them waits
    until it is warmed, before all others."""
    films: str = bounded("auto", choices=AUTO_ON_OFF)
    """Films as inputs. `auto`: where PyAV is installed (`pip install vision-predictors[films]`).
    `on`: also without it, for films that are sent as a list of pictures. On a GPU a pass over a
    picture then computes a few thousandths more. `off`: such requests get 400."""
    embedding_cache_bytes: int = 256 * 2**20
    """Largest size of the cache of picture embeddings. Its key is a hash of the file and of the
    target size."""
    prefix_cache: str = bounded("auto", choices=AUTO_ON_OFF)
    """Lets prompts that begin alike (same text, same pictures) share what was computed for the
    beginning, in unused pages of the KV cache. `auto`: on a GPU, unless `deterministic`. The time
    to the first token then shows a caller that the same beginning was sent before."""
    precision: str = bounded("auto", choices=("auto", "fp8"))
    """`fp8`: the decoder's linear layers are quantised to 8-bit floating point while loading, which
    halves their memory. That is fast only on a GPU with fp8 units, and works anywhere. `auto`:
    `compute.dtype`; on Hopper it decodes faster from 8 rows on."""
    deterministic: str = bounded("auto", choices=AUTO_ON_OFF)
    """`on`: decoding always uses the same batch width, so that other requests never change a bit of
    an answer. `auto`: on for float32 on the CPU."""
    lora_max_active: int = bounded(0, least=0, most=256)
    """Adapters (LoRA, in PEFT's format) that the device holds at once, each `lora_max_rank` of all
    linear layers of language model and vision tower; more can be loaded and take turns. 0: none are
    served, and they cost nothing. Else a pass over rows without one costs what it did."""
    lora_max_rank: int = bounded(0, least=0, most=MOST_RANK)
    """Largest rank of an adapter. A step in which a row has one reads `lora_max_active` times
    this. 0: that of the largest one that is given at the start, at least 16."""

    @property
    def adapter_rank(self) -> int:
        """`lora_max_rank`, or the least of it where none was given."""
        return self.lora_max_rank or 16

    @property
    def of_passes(self) -> QwenVLSettings:
        """These settings without `warm`, on which no compiled code depends."""
        return replace(self, warm=QwenVLSettings().warm)
