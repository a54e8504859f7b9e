"""One V2 request to one model, by the standard library alone: what `helm test` runs in a pod.
Prints the model's state until it is ready, its pages and what the server has switched off, then
asks in its format's own way and looks at what came back.

Arguments: URL NAME FORMAT WAIT_S TIMEOUT_S PICTURE (base64). With KEYS_ARE_NEEDED set, requests
without a key and with a wrong one must be refused, and the question is asked with API_KEY; without
that variable there is no question. Ends with 0 if all is right.
"""

import base64
import json
import os
import ssl
import sys
import time
import urllib.error
import urllib.request

SERVER = "/etc/server/tls.crt"
CLIENT = "/etc/client/tls.crt"
REFUSED = 401


def trusted() -> ssl.SSLContext | None:
    """Trust in the very certificate of the server, which may have other names; None over HTTP."""
    if not os.path.exists(SERVER):
        return None
    context = ssl.create_default_context(cafile=SERVER)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    if os.path.exists(CLIENT):
        context.load_cert_chain(CLIENT, "/etc/client/tls.key")
    return context


def say(text: str) -> None:
    """Print at once: `helm test` shows it."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def state_of(error: OSError) -> str:
    """The model's state after a failed probe: refused, unresolved, too late, 503."""
    if not isinstance(error, urllib.error.HTTPError):
        return f"no pod answers ({getattr(error, 'reason', error)})"
    return "loads or warms up" if error.code == 503 else f"answers {error.code}"


def wait_ready(url: str, name: str, wait_s: float) -> None:
    """Return when the model says that it is ready, and print each other state once; raises
    `SystemExit` when the time is up."""
    start, last = time.monotonic(), ""
    while True:
        try:
            with urllib.request.urlopen(
                f"{url}/v2/models/{name}/ready", timeout=5, context=trusted()
            ):
                say(f"{name} is ready at {url}, after {time.monotonic() - start:.0f} s")
                return
        except OSError as error:
            if time.monotonic() > start + wait_s:
                raise SystemExit(f"{name} was not ready after {wait_s:g} s: {error}") from error
            if (state := state_of(error)) != last:
                say(f"{name}: {state}")
                last = state
        time.sleep(1)


def is_served(address: str) -> bool:
    """The server has a page there, which needs no key."""
    try:
        with urllib.request.urlopen(address, timeout=30, context=trusted()) as response:
            return bool(response.status == 200)
    except urllib.error.HTTPError:
        return False


def tell_pages(url: str) -> None:
    """Print where the server's pages are, and what it has switched off."""
    rows = {
        "page for browsers": ("/playground", "settings.server.playground"),
        "page of the API": ("/docs", "settings.server.docs"),
        "metrics on this port": ("/metrics", "metrics.port has them on another"),
    }
    for what, (path, key) in rows.items():
        say(f"{what}: {url + path if is_served(url + path) else f'off ({key})'}")
    say(f"TLS: {'on' if url.startswith('https:') else 'off (tls.secretName)'}")
    if not os.environ.get("KEYS_ARE_NEEDED"):
        say("API keys: off (apiKeys), whoever reaches the port is served")


def tensor(name: str, value: str) -> dict[str, object]:
    """A V2 tensor of one row."""
    return {"name": name, "datatype": "BYTES", "shape": [1], "data": [value]}


def post(url: str, name: str, body: dict[str, object], key: str) -> urllib.request.Request:
    """The request for one inference."""
    headers = {"Content-Type": "application/json"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    data = json.dumps(body).encode()
    return urllib.request.Request(f"{url}/v2/models/{name}/infer", data=data, headers=headers)


def check_refused(url: str, name: str, key: str, what: str) -> None:
    """Raise `SystemExit` unless a request with this key is refused."""
    try:
        with urllib.request.urlopen(
            post(url, name, {"inputs": []}, key), timeout=30, context=trusted()
        ) as response:
            status = response.status
    except urllib.error.HTTPError as error:
        status = error.code
    if status != REFUSED:
        raise SystemExit(f"{name} answered {status} to a request {what}, instead of {REFUSED}")
    say(f"{name} refused a request {what}")


def ask(url: str, name: str, body: dict[str, object], timeout_s: float) -> dict[str, object]:
    """The outputs of one inference by name; raises `SystemExit` unless it is answered with 200."""
    request = post(url, name, body, os.environ.get("API_KEY", ""))
    started = time.monotonic()
    try:
        with urllib.request.urlopen(request, timeout=timeout_s, context=trusted()) as response:
            answer = json.load(response)
            status = response.status
    except urllib.error.HTTPError as error:
        raise SystemExit(f"{name} answered {error.code}: {error.read()[:500]!r}") from error
    say(f"{name} answered {status} after {time.monotonic() - started:.2f} s")
    if status != 200:
        raise SystemExit(f"{name} answered {status} instead of 200")
    return {output["name"]: output["data"][0] for output in answer["outputs"]}


def ask_flux(url: str, name: str, timeout_s: float, picture: str) -> None:
    """A picture from a prompt; it must be a PNG."""
    body = {
        "inputs": [tensor("prompt", "a large red circle on a white background")],
        "parameters": {"seed": 7},
    }
    image = base64.b64decode(str(ask(url, name, body, timeout_s)["image"]))
    if not image.startswith(b"\x89PNG\r\n\x1a\n"):
        raise SystemExit(f"{name} sent no PNG but {image[:16]!r}")
    sides = [int.from_bytes(image[at : at + 4], "big") for at in (16, 20)]
    say(f"a PNG of {sides[0]}x{sides[1]}, {len(image)} bytes")


def ask_qwen_vl(url: str, name: str, timeout_s: float, picture: str) -> None:
    """Words from a picture; there must be some."""
    body = {
        "inputs": [tensor("prompt", "Describe this picture."), tensor("image", picture)],
        "parameters": {"max_tokens": 32, "temperature": 0},
    }
    text = str(ask(url, name, body, timeout_s)["text"])
    if not any(letter.isalpha() for letter in text):
        raise SystemExit(f"{name} sent no words but {text!r}")
    say(f"it says: {text}")


def main() -> None:
    """Wait, ask, judge."""
    url, name, model_format, wait_s, timeout_s, picture = sys.argv[1:]
    wait_ready(url, name, float(wait_s))
    tell_pages(url)
    if os.environ.get("KEYS_ARE_NEEDED"):
        check_refused(url, name, "", "without a key")
        check_refused(url, name, "not-a-key", "with a wrong key")
        if "API_KEY" not in os.environ:
            say("tests.apiKey.secretName names no key: nothing else was asked")
            return
    ways = {"flux": ask_flux, "qwen-vl": ask_qwen_vl}
    ways[model_format](url, name, float(timeout_s), picture)


main()
