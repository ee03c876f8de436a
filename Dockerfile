# The image that scripts/launch/gke.yaml and XPK start:  docker build -t IMAGE .
# For GPUs: --build-arg EXTRA=cuda; for a CPU: --build-arg EXTRA=
FROM python:3.12-slim-bookworm
ARG EXTRA=tpu
WORKDIR /mcl_jax
COPY pyproject.toml setup.cfg README.md LICENSE NOTICE ./
COPY mcl_jax mcl_jax
COPY convert convert
COPY configs configs
# setup.cfg bounds every version
# hadolint ignore=DL3013
RUN pip install --no-cache-dir ".[${EXTRA}]"
# an empty folder: the installed package alone is used
WORKDIR /work
CMD ["mcl-jax", "--help"]
