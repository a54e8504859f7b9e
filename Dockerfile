# The product's image. `docker build .` builds `server` (no weights); `--target demo` adds the two
# embedded checkpoints. docs/deploy.md explains a build without a registry.
#
# Slow layers come first: the wheels (5 GB, since torch does not import without its CUDA libraries)
# depend only on constraints.txt, hashes.txt and the dependencies in pyproject.toml. The product is
# one thin layer above them. A wheel whose sha256 is not in hashes.txt is refused. Build secrets
# `pip` (a pip.conf) and `ca` (a bundle of certificates) are used by the downloads and end up in no
# layer.

# any Debian with Python 3.11 to 3.13 and venv; `system` installs the other packages. A release names
# it by digest (python:3.12-slim@sha256:...), as release.yaml does; the label `base.name` says which
ARG BASE_IMAGE=python:3.12-slim
# the image that compiles FlashAttention 2 if FLASH_ATTN_VERSION is set: it has nvcc and the base's
# Python, such as nvidia/cuda:13.0.2-devel-ubuntu24.04 for the default base
ARG ATTENTION_IMAGE=${BASE_IMAGE}

FROM ${BASE_IMAGE} AS system
# Triton writes a launcher in C for each kernel and compiles it with gcc; Debian's own Python keeps
# its headers in a separate package, other builds include them
# hadolint ignore=SC2086
RUN set -eu; \
    wanted="ca-certificates gcc libc6-dev libgomp1 libstdc++6 tini"; \
    [ "$(command -v python3)" != /usr/bin/python3 ] || wanted="${wanted} python3-venv python3-dev"; \
    missing=""; \
    for package in ${wanted}; do \
      status=$(dpkg-query --show --showformat '${db:Status-Status}' "${package}" 2>/dev/null || true); \
      [ "${status}" = installed ] || missing="${missing} ${package}"; \
    done; \
    if [ -n "${missing}" ]; then \
      apt-get update; \
      apt-get install -y --no-install-recommends ${missing}; \
      rm -rf /var/lib/apt/lists/*; \
    fi; \
    echo 'predictors:x:10001:10001:predictors:/tmp:/usr/sbin/nologin' >>/etc/passwd; \
    echo 'predictors:x:10001:' >>/etc/group; \
    install -d -o 10001 -g 0 -m 0770 /var/cache/predictors

# only the dependencies, with a fixed date, so that neither another edit of pyproject.toml nor a
# fresh clone rebuilds the wheels
FROM system AS requirements
# extras of pyproject.toml to install
ARG EXTRAS="otel fa3 gpu c2pa"
COPY pyproject.toml constraints.txt hashes.txt /src/
# uv checks hashes of pinned requirements alone, so each dependency gets its version here
# hadolint ignore=SC2086
RUN set -eu; \
    mkdir /opt/requirements; \
    cp /src/hashes.txt /opt/requirements/; \
    python3 -c "import re, sys, tomllib; project = tomllib.load(sys.stdin.buffer)['project']; \
      pins = dict(re.findall(r'^([\w-]+)==(\S+)', open(sys.argv[1]).read(), re.M)); \
      extras = [project['optional-dependencies'][name] for name in sys.argv[2:]]; \
      print(*(re.sub(r'^([\w-]+)[^;]*', lambda found: f'{found[1]}=={pins[found[1]]} ', line) \
      for line in sum(extras, project['dependencies'])), sep='\n')" \
      /src/constraints.txt ${EXTRAS} </src/pyproject.toml >/opt/requirements/requirements.txt; \
    for tool in uv setuptools; do \
      sed -n "/^${tool}==/,/[^\\]\$/p" /src/hashes.txt >"/opt/requirements/${tool}.txt"; \
    done; \
    touch -d @0 /opt/requirements /opt/requirements/*

# Empty unless FLASH_ATTN_VERSION (for example 2.8.3) is set; then nvcc takes an hour or more. Neither CI
# nor the e2e suite runs this: they reach no registry that has a CUDA image
FROM ${ATTENTION_IMAGE} AS attention
ARG FLASH_ATTN_VERSION=
# compute capabilities to compile for: A100, L40S, H100
ARG FLASH_ATTN_CUDA_ARCHS="80;89;90"
ARG MAX_JOBS=4
COPY constraints.txt /src/
RUN --mount=type=secret,id=pip --mount=type=secret,id=ca \
    set -eu; \
    mkdir /attention; \
    [ -n "${FLASH_ATTN_VERSION}" ] || exit 0; \
    export PIP_CONFIG_FILE=/run/secrets/pip PIP_NO_CACHE_DIR=1 FLASH_ATTENTION_FORCE_BUILD=TRUE; \
    [ ! -s /run/secrets/ca ] || export PIP_CERT=/run/secrets/ca SSL_CERT_FILE=/run/secrets/ca; \
    export FLASH_ATTN_CUDA_ARCHS MAX_JOBS; \
    apt-get update; \
    apt-get install -y --no-install-recommends g++ python3-dev python3-venv; \
    rm -rf /var/lib/apt/lists/*; \
    python3 -m venv /opt/build; \
    /opt/build/bin/pip install -q -c /src/constraints.txt torch setuptools wheel ninja packaging; \
    /opt/build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /attention \
      "flash-attn==${FLASH_ATTN_VERSION}"

FROM system AS wheels
# uv's download cache; a build on a machine that has a cache mounts it and sets its path
ARG UV_CACHE_DIR=/root/.cache/uv
COPY --from=requirements /opt/requirements /opt/requirements
COPY --from=attention /attention /opt/requirements
# No module's file ever changes here, so Python need not check (UNCHECKED_HASH); the product is
# imported from a separate layer (predictors.pth). The installer is removed at the end
RUN --mount=type=secret,id=pip --mount=type=secret,id=ca \
    --mount=type=cache,target=/root/.cache/uv \
    set -eu; \
    export PIP_CONFIG_FILE=/run/secrets/pip; \
    [ ! -s /run/secrets/ca ] || export PIP_CERT=/run/secrets/ca SSL_CERT_FILE=/run/secrets/ca; \
    export UV_CACHE_DIR UV_LINK_MODE=copy UV_NO_CONFIG=1 UV_PYTHON_DOWNLOADS=never \
      PYC_INVALIDATION_MODE=UNCHECKED_HASH; \
    python3 -m venv /tmp/tools; \
    /tmp/tools/bin/pip install -q --no-cache-dir --disable-pip-version-check --no-deps \
      --require-hashes -r /opt/requirements/uv.txt; \
    index=$(/tmp/tools/bin/pip config get global.index-url 2>/dev/null || true); \
    [ -z "${index}" ] || export UV_DEFAULT_INDEX="${index}"; \
    /tmp/tools/bin/uv venv -q --python "$(command -v python3)" /opt/venv; \
    /tmp/tools/bin/uv pip install -q --compile-bytecode --python /opt/venv/bin/python \
      --only-binary :all: --require-hashes \
      -c /opt/requirements/hashes.txt -r /opt/requirements/requirements.txt; \
    find /opt/requirements -name '*.whl' -exec /tmp/tools/bin/uv pip install -q --no-deps \
      --compile-bytecode --python /opt/venv/bin/python {} +; \
    echo /opt/predictors >"$(echo /opt/venv/lib/python3.*/site-packages)/predictors.pth"; \
    rm -rf /tmp/tools

FROM system AS product
WORKDIR /src
COPY --from=requirements /opt/requirements/setuptools.txt ./
RUN --mount=type=secret,id=pip --mount=type=secret,id=ca \
    set -eu; \
    export PIP_CONFIG_FILE=/run/secrets/pip; \
    [ ! -s /run/secrets/ca ] || export PIP_CERT=/run/secrets/ca SSL_CERT_FILE=/run/secrets/ca; \
    python3 -m venv /opt/tools; \
    /opt/tools/bin/pip install -q --no-cache-dir --disable-pip-version-check --no-deps \
      --require-hashes -r setuptools.txt
COPY pyproject.toml README.md LICENSE ./
COPY predictors predictors
# buildah 1.28 would reuse the labels of an earlier revision from its cache if this layer were the same
ARG REVISION=unknown
RUN set -eu; \
    /opt/tools/bin/pip install -q --disable-pip-version-check --no-index --no-deps \
      --no-build-isolation --no-compile --target /opt/predictors .; \
    rm -rf /opt/predictors/bin; \
    echo "${REVISION}" >/opt/predictors/REVISION; \
    python3 -m compileall -q --invalidation-mode unchecked-hash /opt/predictors; \
    chmod -R a+rX,go-w /opt/predictors

FROM wheels AS runtime
COPY --from=product /opt/predictors /opt/predictors
ARG VERSION=0.2.0
ARG REVISION=unknown
ARG SOURCE=unknown
ARG BASE_IMAGE
LABEL org.opencontainers.image.title="vision-predictors" \
      org.opencontainers.image.description="FLUX.1 text-to-image and Qwen-VL image-to-text as KServe predictors, over V2 and OpenAI" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.base.name="${BASE_IMAGE}" \
      org.opencontainers.image.licenses="Apache-2.0"
# USER: torch needs a user name, which an arbitrary uid lacks. HF_HUB_OFFLINE: no downloads at run time.
# PREDICTORS_ACCESS_OPEN: serves without API keys, with a warning, unless PREDICTORS_ACCESS_KEYS_FILE names some
ENV PATH=/opt/venv/bin:/usr/local/bin:/usr/bin:/bin \
    HOME=/tmp \
    USER=predictors \
    HOST=0.0.0.0 \
    PREDICTORS_ACCESS_OPEN=true \
    HF_HUB_OFFLINE=1 \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONSAFEPATH=1 \
    PYTHONUNBUFFERED=1
EXPOSE 8080 8081
WORKDIR /tmp
USER 10001:10001
ENTRYPOINT ["tini", "-g", "--", "python", "-m", "predictors"]

FROM runtime AS demo
COPY checkpoints/shapes-flux /opt/checkpoints/shapes-flux
COPY checkpoints/shapes-qwen-vl /opt/checkpoints/shapes-qwen-vl
ENV PREDICTORS_SERVER_PLAYGROUND=on
CMD ["serve", "--model", "flux=/opt/checkpoints/shapes-flux", "--model", "qwen-vl=/opt/checkpoints/shapes-qwen-vl"]

# a build without --target builds the last stage
FROM runtime AS server
