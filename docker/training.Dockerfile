# The image in which models are trained: `make images` builds it as nightfleet-training.
# GPU: docker build --build-arg REQUIREMENTS=training-gpu-requirements.txt … (`make images GPU=1`).
ARG BASE_IMAGE=python:3.11-slim
FROM ${BASE_IMAGE}

ARG REQUIREMENTS=training-requirements.txt
# tini is process 1: it forwards signals and reaps children. Debian's Python is externally managed, so the packages get an environment of their own.
RUN { command -v tini >/dev/null || { apt-get update -qq && apt-get install -y -qq --no-install-recommends tini && rm -rf /var/lib/apt/lists/*; }; } \
    && python3 -m venv /opt/venv && useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin trainer
COPY docker/uv-requirements.txt /opt/
COPY docker/${REQUIREMENTS} /opt/requirements.txt
# One layer: the installer and its cache leave no trace in the image.
RUN /opt/venv/bin/pip install --quiet --no-cache-dir --disable-pip-version-check --require-hashes -r /opt/uv-requirements.txt \
    && /opt/venv/bin/uv pip install --python /opt/venv/bin/python --require-hashes --no-cache --compile-bytecode --quiet -r /opt/requirements.txt \
    && /opt/venv/bin/pip uninstall --quiet --yes uv && rm -rf /root/.cache

COPY config/__init__.py config/calendar.py config/durations.py config/errors.py /app/config/
COPY config/catalog/__init__.py config/catalog/base.py config/catalog/output.py config/catalog/trainer.py /app/config/catalog/
COPY lake/__init__.py lake/artifact.py /app/lake/
COPY serving/__init__.py /app/serving/
COPY serving/kinds /app/serving/kinds
COPY serving/metrics /app/serving/metrics
COPY serving/predictors /app/serving/predictors
COPY training/*.py /app/training/
COPY training/search /app/training/search
COPY training/trainers /app/training/trainers
RUN /opt/venv/bin/python -m compileall -q /app && chmod -R a+rX /app

ARG CODE=unknown
ARG VERSION=unknown
LABEL org.opencontainers.image.title="nightfleet-training" \
      org.opencontainers.image.version="${VERSION}" \
      nightfleet.image_code="${CODE}"
ENV PATH=/opt/venv/bin:$PATH PYTHONPATH=/app PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PYTHONHASHSEED=0 \
    HOME=/tmp OMP_WAIT_POLICY=PASSIVE TF_CPP_MIN_LOG_LEVEL=3 MPLCONFIGDIR=/tmp KERAS_HOME=/tmp/keras
WORKDIR /app
USER 10001:10001
ENTRYPOINT ["tini", "-g", "--", "python", "-m", "training"]
