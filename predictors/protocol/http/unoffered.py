"""Routes that clients look for and this server does not have: the reason, or the route that was
meant. `docs/not-offered.md` says more.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

MOST_CHARACTERS = 200
"""Longer paths get no hint."""
_NOT_KEPT = "nothing is kept between requests; send them all at once, they share steps"
REASONS: Mapping[str, str] = {
    "audio": "no served model hears or speaks",
    "batches": _NOT_KEPT,
    "embeddings": "no served model makes embeddings",
    "files": _NOT_KEPT,
    "moderations": "no served model judges texts; what is drawn can be checked by the setting "
    "PREDICTORS_FLUX_CHECKER",
    **dict.fromkeys(("rerank", "score", "pooling", "classify"), "no served model ranks texts"),
    **dict.fromkeys(
        ("load_lora_adapter", "unload_lora_adapter"),
        "adapters are added by POST /admin/loras of the admin port (docs/loras.md)",
    ),
    "videos": "no served model draws films",
}
"""By the first part of the path after `/v1/`."""
_OPENAI = "this server has OpenAI's API: POST /v1/chat/completions, or /v1/completions for a text"
_PICTURES = "this server has OpenAI's API: POST /v1/images/generations and /v1/images/edits"
_MODELS = "GET /v1/models lists the models"
_STATE = "GET /v2/models/MODEL describes a model, GET /metrics counts what it does"
_HEALTH = "GET /health answers when every model is ready"
ELSEWHERE: Mapping[str, str] = {
    **dict.fromkeys(("/api/chat", "/api/generate", "/generate", "/generate_stream"), _OPENAI),
    **dict.fromkeys(("/completion", "/infill", "/invocations", "/v1/invocations"), _OPENAI),
    **dict.fromkeys(("/api/tags", "/api/ps", "/api/show", "/sdapi/v1/sd-models"), _MODELS),
    **dict.fromkeys(("/get_model_info", "/model_info", "/get_server_info", "/server_info"), _STATE),
    **dict.fromkeys(("/props", "/slots", "/load", "/stats", "/info"), _STATE),
    **dict.fromkeys(("/ping", "/health_generate", "/v1/health"), _HEALTH),
    **dict.fromkeys(("/sdapi/v1/txt2img", "/sdapi/v1/img2img", "/prompt"), _PICTURES),
    **dict.fromkeys(("/object_info", "/v1/images/variations"), _PICTURES),
    **dict.fromkeys(("/rerank", "/score", "/pooling", "/classify"), REASONS["rerank"]),
    **dict.fromkeys(("/api/embed", "/api/embeddings", "/embed"), REASONS["embeddings"]),
    "/v1/chat/completions/render": "POST /tokenize answers with a prompt's tokens",
    "/apply-template": "POST /tokenize answers with a prompt's tokens",
    **dict.fromkeys(("/v1", "/api", "/openai", "/openai/v1"), _MODELS),
}
"""Routes of other servers, whole: Ollama, llama.cpp, SGLang, vLLM, TGI, SageMaker, the Stable
Diffusion web UI, ComfyUI."""


def reason_of(path: str) -> str:
    """The end of the sentence that there is no such route: a colon and the reason, or empty."""
    whole = path.rstrip("/") if len(path) <= MOST_CHARACTERS else ""
    if whole in ELSEWHERE:
        return f": {ELSEWHERE[whole]}"
    name = path.removeprefix("/openai").removeprefix("/v1/").partition("/")[0]
    reason = REASONS.get(name) if "/v1/" in path else None
    return f": {reason}" if reason else ""


BASES = ("/api", "/openai", "/v1", "/v2")
"""Beginnings of paths that clients put once too often, or leave out."""
MEANT: Mapping[str, str] = {
    **dict.fromkeys(("/healthz", "/livez", "/live", "/health/live"), "/v2/health/live"),
    **dict.fromkeys(("/readyz", "/ready", "/health/ready"), "/v2/health/ready"),
    **dict.fromkeys(("/redoc", "/swagger"), "/docs"),
}
"""Routes of the same purpose by the names that other servers give them."""


def meant_route(path: str, served: Collection[str]) -> str:
    """A question for the one of `served` that a path comes nearest to, or empty."""
    rest = path.rstrip("/") if len(path) <= MOST_CHARACTERS else ""
    while base := next((each for each in BASES if rest.startswith(f"{each}/")), ""):
        rest = rest.removeprefix(base)
    tried = (MEANT.get(rest, ""), f"/v1{rest}", f"/v1{rest}s", rest)
    found = next((route for route in tried if route in served), "")
    return f"; did you mean {found}?" if found else ""
