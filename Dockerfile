# One image to prepare data, to train and to serve; docs/running.md shows how to use it.
#
#   docker build --tag minigpt-jax:cpu .
#   docker build --tag minigpt-jax:cuda --build-arg ACCELERATOR=cuda .
FROM python:3.12-slim

ARG ACCELERATOR=cpu
WORKDIR /app

# What the code needs has a layer of its own: after a change of the code it is not made again.
COPY requirements.txt pyproject.toml ./
RUN case "$ACCELERATOR" in \
        cpu) extras="fast" ;; \
        cuda) extras="fast cuda" ;; \
        *) echo "ACCELERATOR=$ACCELERATOR: expected cpu or cuda" >&2; exit 2 ;; \
    esac \
    && python -c "import sys, tomllib; \
        project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
        extras = [project['optional-dependencies'][name] for name in sys.argv[1:]]; \
        print(*sum(extras, []), sep='\n')" $extras > extras.txt \
    && pip install --no-cache-dir -r requirements.txt -r extras.txt

# The volumes. runs/ and data/ in the working directory lead there, so that commands and configs
# are the same as in a checkout.
RUN useradd --uid 1000 --no-create-home minigpt \
    && install --directory --owner=minigpt --group=minigpt /runs /data
RUN ln -s /runs /data .

COPY LICENSE NOTICE README.md sample.py train.py ./
COPY configs configs
COPY data_tools data_tools
COPY minigpt_jax minigpt_jax
# The umask of whoever made the checkout must not decide whether the user of the image can read it.
RUN pip install --no-cache-dir --no-deps --config-settings editable_mode=compat --editable . \
    && chmod -R a+rX .

# /tmp is the only other folder that is written to, by any user and on a read-only image.
# The last one is for NVIDIA's container runtime.
ENV HOME=/tmp PYTHONUNBUFFERED=1 NVIDIA_DRIVER_CAPABILITIES=compute,utility
# A number, by which Kubernetes knows that it is not root.
USER 1000:1000
EXPOSE 8000
STOPSIGNAL SIGTERM
# Not urllib, which would ask a proxy.
HEALTHCHECK --interval=30s --timeout=5s --start-period=5m CMD ["python", "-c", \
    "from http.client import HTTPConnection; server = HTTPConnection('127.0.0.1', 8000, timeout=4); server.request('GET', '/health'); exit(server.getresponse().status != 200)"]
# Another address than loopback needs MINIGPT_API_KEY.
CMD ["minigpt", "serve", "--host", "0.0.0.0", "--runs", "/runs"]
