# syntax=docker/dockerfile:1
# Two images from one file:
#
#   docker build --target api    -t tunesmith-api    .     the HTTP API, without torch
#   docker build --target worker -t tunesmith-worker .     the worker; also runs the engine
#
# NVIDIA GPU: add --build-arg TORCH_INDEX_URL=https://download.pytorch.org/whl/cu130

ARG PYTHON_VERSION=3.12

# The full image, because pysqlite3 has no wheel for Linux on arm64 and is compiled there.
# Nothing of these stages reaches the final images but /opt/venv.
FROM python:${PYTHON_VERSION}-trixie AS builder
ENV PATH=/opt/venv/bin:$PATH \
    PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
RUN python -m venv /opt/venv
COPY pyproject.toml constraints.txt ./
# Dependencies before code, so that a change of the code does not install them again.
RUN python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")' > base.txt \
 && python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["ml"], sep="\n")' > ml.txt
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install -c constraints.txt -r base.txt

FROM builder AS builder-api
COPY . .
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --no-deps .

FROM builder AS builder-worker
ARG TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu
# Only torch comes from this index. Its dependencies come from PyPI in the next step.
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install -c constraints.txt --no-deps --index-url "${TORCH_INDEX_URL}" torch
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install -c constraints.txt -r ml.txt
COPY . .
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --no-deps .

FROM python:${PYTHON_VERSION}-slim-trixie AS runtime
RUN groupadd --gid 10001 tunesmith \
 && useradd --uid 10001 --gid 10001 --create-home --shell /usr/sbin/nologin tunesmith \
 && install -d -o tunesmith -g tunesmith -m 0750 /data
# A base model from the Hugging Face hub is linked to, not copied: its cache belongs to the data.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    TUNESMITH_DATA_DIR=/data \
    HF_HOME=/data/huggingface
WORKDIR /data
USER 10001:10001
STOPSIGNAL SIGTERM
ENTRYPOINT ["tunesmith"]

FROM runtime AS worker
COPY --from=builder-worker /opt/venv /opt/venv
CMD ["worker"]

FROM runtime AS api
COPY --from=builder-api /opt/venv /opt/venv
ENV API_HOST=0.0.0.0
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + (os.environ.get('API_PORT') or '8000') + '/healthz', timeout=4)"]
CMD ["api"]
