# The image that scripts/launch/gke.yaml and XPK start:  docker build -t IMAGE .
# For GPUs: --build-arg EXTRAS=cuda,gcs; for a CPU: --build-arg EXTRAS=gcs
FROM python:3.12-slim-bookworm
ARG EXTRAS=tpu,gcs
WORKDIR /mcl_jax
COPY pyproject.toml setup.cfg README.md LICENSE NOTICE ./
COPY mcl_jax mcl_jax
COPY convert convert
COPY configs configs
# setup.cfg bounds every version
# hadolint ignore=DL3013
RUN pip install --no-cache-dir ".[${EXTRAS}]"
# an empty folder: the installed package alone is used
WORKDIR /work
CMD ["mcl-jax", "--help"]
