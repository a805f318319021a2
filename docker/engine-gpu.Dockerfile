# syntax=docker/dockerfile:1
# The engine for NVIDIA GPUs: Ray and vLLM, the image of RayServices. The driver comes from the node (NVIDIA's container
# toolkit), CUDA's libraries from PyTorch's wheels.
#   docker build -f docker/engine-gpu.Dockerfile -t tidegate-engine:0.1.0 .
# Put the digest of the base image that you have checked behind the tag: --build-arg BASE=python:3.11.14-slim-bookworm@sha256:...
ARG BASE=python:3.11.14-slim-bookworm

FROM ${BASE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONDONTWRITEBYTECODE=1
RUN python -m venv /usr/local/tidegate
WORKDIR /src
COPY requirements/base.lock requirements/gpu.lock requirements/
RUN /usr/local/tidegate/bin/pip install --no-deps --require-hashes --only-binary :all: \
    -r requirements/base.lock -r requirements/gpu.lock
COPY pyproject.toml README.md LICENSE ./
COPY serving serving
COPY registry registry
COPY rollout rollout
COPY monitoring monitoring
COPY guardrails guardrails
COPY console console
COPY tidegate tidegate
RUN python -m pip install setuptools==78.1.1 wheel==0.45.1 \
    && python -m pip wheel --no-deps --no-build-isolation --wheel-dir /wheels . \
    && /usr/local/tidegate/bin/pip install --no-deps --no-index /wheels/*.whl

FROM ${BASE}
LABEL org.opencontainers.image.title="Tidegate engine" \
      org.opencontainers.image.licenses="Apache-2.0"
# vLLM compiles kernels for the GPU that it finds (Triton): a C compiler and libnuma, nothing else. Debian's point releases
# move; the base image's digest pins the rest.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev libnuma1 \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 1000 ray \
    && useradd --uid 1000 --gid 1000 --create-home --shell /bin/bash ray
COPY --from=build /usr/local/tidegate /usr/local/tidegate
ENV PATH=/usr/local/tidegate/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    HF_HUB_OFFLINE=1 \
    VLLM_NO_USAGE_STATS=1 \
    RAY_USAGE_STATS_ENABLED=0
USER 1000:1000
WORKDIR /home/ray
CMD ["ray", "--help"]
