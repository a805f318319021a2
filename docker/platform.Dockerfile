# syntax=docker/dockerfile:1
# Gateway, controller, drift watch, guardrails' models, MLflow and the chart's Job: one image, one command each.
#   docker build -f docker/platform.Dockerfile -t tidegate:0.1.0 .
# Put the digest of the base image that you have checked behind the tag: --build-arg BASE=python:3.11.14-slim-bookworm@sha256:...
ARG BASE=python:3.11.14-slim-bookworm

FROM ${BASE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONDONTWRITEBYTECODE=1
# A C compiler for the gateway's hot path, in this stage only.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/* \
    && python -m venv /usr/local/tidegate
WORKDIR /src
# The locked packages first: their layer stays while only our own code changes. Wheels only, each checked by its hash.
COPY requirements/base.lock requirements/compile.lock requirements/
RUN /usr/local/tidegate/bin/pip install --no-deps --require-hashes --only-binary :all: -r requirements/base.lock
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
# What every request passes, as machine code (docs/adr/0008): a gateway without it takes half as much processor again. It
# is made of the sources here and used where the installed ones are the same; what made it does not stay.
RUN /usr/local/tidegate/bin/pip install --no-deps --require-hashes --only-binary :all: -r requirements/compile.lock \
    && /usr/local/tidegate/bin/pip install --no-deps setuptools==78.1.1 \
    && /usr/local/tidegate/bin/python -m serving.gateway.compiled \
    && mv build/compiled /usr/local/tidegate/tidegate-compiled \
    && /usr/local/tidegate/bin/pip uninstall --yes mypy mypy-extensions librt ast-serialize pathspec setuptools \
    && /usr/local/tidegate/bin/python -m compileall -q -j 0 /usr/local/tidegate/lib

FROM ${BASE}
LABEL org.opencontainers.image.title="Tidegate" \
      org.opencontainers.image.licenses="Apache-2.0"
# The chart runs it as this user with a root file system that can't be written; a bare `docker run` gets the same user.
RUN groupadd --system --gid 10001 tidegate \
    && useradd --system --uid 10001 --gid 10001 --home-dir /var/lib/tidegate --create-home --shell /usr/sbin/nologin tidegate
COPY --from=build /usr/local/tidegate /usr/local/tidegate
ENV PATH=/usr/local/tidegate/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    TIDEGATE_HOME=/var/lib/tidegate
USER 10001:10001
WORKDIR /var/lib/tidegate
EXPOSE 8000 8001 8080
CMD ["python", "-m", "tidegate.control_plane"]
