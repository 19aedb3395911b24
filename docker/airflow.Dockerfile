# Airflow with every stage, DAG and plugin: one image for api-server, scheduler, dag-processor, triggerer and workers.
#   docker run … nightfleet-airflow airflow scheduler            (`make airflow-image` builds it)
# State lies in /data (a volume); secrets come by environment. Workers that train in containers need the engine's socket or DOCKER_HOST.
ARG BASE_IMAGE=python:3.11-slim
FROM ${BASE_IMAGE}

RUN { command -v tini >/dev/null || { apt-get update -qq && apt-get install -y -qq --no-install-recommends tini && rm -rf /var/lib/apt/lists/*; }; } \
    && python3 -m venv /opt/venv && useradd --uid 10000 --create-home --shell /usr/sbin/nologin airflow
COPY docker/uv-requirements.txt requirements.txt /opt/
RUN /opt/venv/bin/pip install --quiet --no-cache-dir --disable-pip-version-check --require-hashes -r /opt/uv-requirements.txt \
    && /opt/venv/bin/uv pip install --python /opt/venv/bin/python --require-hashes --no-cache --compile-bytecode --quiet -r /opt/requirements.txt \
    && /opt/venv/bin/pip uninstall --quiet --yes uv && rm -rf /root/.cache

# As in a checkout: the code's digests, and with them the training image's tag, are the same.
COPY config /app/config
COPY lake /app/lake
COPY features /app/features
COPY serving /app/serving
COPY training /app/training
COPY monitoring /app/monitoring
COPY plugins /app/plugins
COPY dags /app/dags
COPY cli /app/cli
COPY docker /app/docker
COPY requirements.in /app/
RUN /opt/venv/bin/python -m compileall -q /app && chmod -R a+rX /app && mkdir /data && chown 10000:10000 /data

ARG CODE=unknown
ARG VERSION=unknown
LABEL org.opencontainers.image.title="nightfleet-airflow" \
      org.opencontainers.image.version="${VERSION}" \
      nightfleet.image_code="${CODE}"
ENV PATH=/opt/venv/bin:$PATH PYTHONPATH=/app PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 OMP_WAIT_POLICY=PASSIVE \
    NIGHTFLEET_HOME=/data AIRFLOW_HOME=/data/airflow AIRFLOW__CORE__DAGS_FOLDER=/app/dags AIRFLOW__CORE__PLUGINS_FOLDER=/app/plugins \
    AIRFLOW__CORE__LOAD_EXAMPLES=False DO_NOT_TRACK=1 MLFLOW_DISABLE_TELEMETRY=true GX_ANALYTICS_ENABLED=false FEAST_USAGE=False
WORKDIR /app
USER 10000:10000
ENTRYPOINT ["tini", "-g", "--"]
CMD ["python", "-m", "cli", "doctor"]
