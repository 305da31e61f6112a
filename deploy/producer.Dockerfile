# Every command that needs no torch: submit, watch, fetch and the like, `latentfarm exporter` and `latentfarm serve`.
#
#   docker build --file deploy/producer.Dockerfile --tag latentfarm/producer .
#
# BASE  Debian with python3 (3.11 or newer) and its module venv
ARG BASE=python:3.12.13-slim-bookworm

FROM ${BASE} AS build
WORKDIR /source
COPY constraints.txt pyproject.toml ./
ENV PIP_CONSTRAINT=/source/constraints.txt PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python3 -m venv /build \
    && /build/bin/pip install setuptools \
    && python3 -m venv --without-pip /opt/latentfarm
# An empty wheel installs the dependencies in a layer of their own: a change of the code does not download them again.
RUN mkdir producer worker \
    && touch README.md \
    && /build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /empty . \
    && /build/bin/pip --python /opt/latentfarm/bin/python install "$(echo /empty/*.whl)[parquet,server]"
COPY LICENSE README.md ./
COPY producer producer
COPY worker worker
RUN /build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /wheels . \
    && /build/bin/pip --python /opt/latentfarm/bin/python install --no-deps --force-reinstall /wheels/*.whl

FROM ${BASE}
RUN groupadd --gid 10001 latentfarm \
    && useradd --uid 10001 --gid 10001 --no-log-init --no-create-home --home-dir /work latentfarm \
    && install --directory --owner 10001 --group 10001 /work
COPY --from=build /opt/latentfarm /opt/latentfarm
COPY deploy/healthcheck.py /opt/latentfarm/healthcheck.py
ENV PATH=/opt/latentfarm/bin:$PATH PYTHONUNBUFFERED=1 HOME=/work
USER 10001:10001
WORKDIR /work
EXPOSE 7860 9465
HEALTHCHECK --interval=10s --timeout=5s --start-period=1m --retries=3 \
    CMD ["python3", "/opt/latentfarm/healthcheck.py"]
ENTRYPOINT ["latentfarm"]
CMD ["--help"]
