# A worker: torch, diffusers and the bundled model. Other models are downloaded at run time, into the cache volume.
#
#   docker build --file deploy/worker.Dockerfile --tag latentfarm/worker .
#
# BASE         Debian with python3 (3.11 or newer), its module venv and its headers
# TORCH_INDEX  URL of the package index for torch, such as PyTorch's own for CPUs or for another CUDA version
#              [default: pip's index, whose torch for Linux is the CUDA build]
ARG BASE=python:3.12.13-slim-bookworm

FROM ${BASE} AS build
ARG TORCH_INDEX=""
WORKDIR /source
COPY constraints.txt pyproject.toml ./
ENV PIP_CONSTRAINT=/source/constraints.txt PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python3 -m venv /build \
    && /build/bin/pip install setuptools \
    && python3 -m venv --without-pip /opt/latentfarm
# Only torch is installed from its index, so that this index cannot replace another package.
RUN test -z "$TORCH_INDEX" \
    || /build/bin/pip --python /opt/latentfarm/bin/python install --no-deps --index-url "$TORCH_INDEX" torch
# An empty wheel installs the dependencies in a layer of their own: a change of the code does not download them again.
RUN mkdir producer worker \
    && touch README.md \
    && /build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /empty . \
    && /build/bin/pip --python /opt/latentfarm/bin/python install "$(echo /empty/*.whl)[worker]"
COPY LICENSE README.md ./
COPY producer producer
COPY worker worker
RUN /build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /wheels . \
    && /build/bin/pip --python /opt/latentfarm/bin/python install --no-deps --force-reinstall /wheels/*.whl

FROM ${BASE}
# torch.compile runs a compiler, which needs Python's headers too. Debian has one version of each package: nothing to pin.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
RUN groupadd --gid 10001 latentfarm \
    && useradd --uid 10001 --gid 10001 --no-log-init --no-create-home --home-dir /var/cache/latentfarm latentfarm \
    && install --directory --owner 10001 --group 10001 /var/cache/latentfarm
COPY --from=build /opt/latentfarm /opt/latentfarm
COPY deploy/healthcheck.py /opt/latentfarm/healthcheck.py
ENV PATH=/opt/latentfarm/bin:$PATH PYTHONUNBUFFERED=1 HOME=/var/cache/latentfarm \
    HF_HOME=/var/cache/latentfarm/huggingface LATENTFARM_CACHE_DIR=/var/cache/latentfarm \
    LATENTFARM_METRICS_ADDRESS=0.0.0.0:9464
# Calibration results, compiled code and models. A volume that outlives the container saves the next one that time.
VOLUME /var/cache/latentfarm
USER 10001:10001
WORKDIR /var/cache/latentfarm
EXPOSE 9464
# A worker is live while it loads its model. The start period is for a slow machine.
HEALTHCHECK --interval=10s --timeout=5s --start-period=5m --retries=3 \
    CMD ["python3", "/opt/latentfarm/healthcheck.py"]
ENTRYPOINT ["latentfarm"]
CMD ["worker"]
