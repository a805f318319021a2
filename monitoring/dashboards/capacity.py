"""What the dashboard for cost and capacity shows: engines, GPUs, hosts. Pure.

Engines are asked under both names that their metrics go by: vLLM's own, and Ray's, which has `ray_vllm_` for `vllm:`.
"""

from __future__ import annotations

from monitoring.dashboards.panels import VARIABLE_MODEL as MODEL
from monitoring.dashboards.panels import Column, Dashboard, Panel, Query, Row, Shape, Unit
from monitoring.dashboards.rollouts import EVENTS

HOT = ((None, "green"), (75.0, "yellow"), (85.0, "red"))
FULL = ((None, "green"), (0.8, "yellow"), (0.95, "red"))


def engine(template: str) -> str:
    """An expression over vLLM's metrics, written with `vllm:`, for either name that they are scraped under."""
    return f"{template} or {template.replace('vllm:', 'ray_vllm_')}"


ENGINES = Row("Engines", (
    Panel("Running and waiting", "Requests inside the engines.",
          (Query(engine("sum by (model_name) (vllm:num_requests_running)"), "{{model_name}} running"),
           Query(engine("sum by (model_name) (vllm:num_requests_waiting)"), "{{model_name}} waiting"))),
    Panel("Waiting at the gateway", "By priority.",
          (Query(f"sum by (model, priority) (tidegate_queue_depth{{{MODEL}}})", "{{model}} {{priority}}"),)),
    Panel("Quotas of namespaces", "Used share of what all keys of a namespace may ask for, over all gateways.",
          (Query("sum by (key_namespace, limit) (tidegate_quota_used) / sum by (key_namespace, limit) "
                 "(tidegate_quota_limit)", "{{key_namespace}} {{limit}}"),),
          unit=Unit.RATIO, steps=FULL),
    Panel("KV cache in use", "Near 1 engines preempt requests.",
          (Query(engine("max by (model_name) (vllm:kv_cache_usage_perc)"), "{{model_name}}"),),
          unit=Unit.RATIO, most=1.0, steps=FULL),
    Panel("Prefix cache hits", "Share of prompt tokens that were in the cache.",
          (Query(engine("sum by (model_name) (rate(vllm:prefix_cache_hits_total[5m])) "
                        "/ sum by (model_name) (rate(vllm:prefix_cache_queries_total[5m]))"), "{{model_name}}"),),
          unit=Unit.RATIO, most=1.0),
    Panel("Output tokens per second", "As engines count them.",
          (Query(engine("sum by (model_name) (rate(vllm:generation_tokens_total[5m]))"), "{{model_name}}"),),
          unit=Unit.TOKENS_PER_SECOND),
    Panel("Preemptions", "Requests that an engine had to put aside, per second.",
          (Query(engine("sum by (model_name) (rate(vllm:num_preemptions_total[5m]))"), "{{model_name}}"),),
          unit=Unit.PER_SECOND),
))  # fmt: skip

RAY = Row("Ray", (
    Panel("Healthy replicas", "Of each Serve application, which is one revision, beside how many it should have.",
          (Query("sum by (application) (ray_serve_deployment_replica_healthy)", "{{application}} healthy"),
           Query("max by (application) (ray_serve_autoscaling_target_replicas)", "{{application}} wanted"))),
    Panel("Replicas that were there", "In the time range shown; more than are wanted means that some were replaced.",
          (Query("count by (application) "
                 "(last_over_time(ray_serve_deployment_replica_starts_total[$__range]))", "{{application}}"),),
          Shape.STAT),
    Panel("Memory in use on Ray's nodes", "By address of the node.",
          (Query("ray_node_mem_used / ray_node_mem_total", "{{ip}}"),), unit=Unit.RATIO, most=1.0, steps=FULL),
))  # fmt: skip

_ALL_OUTPUT = 'sum(model_version_direction:tidegate_tokens:rate5m{direction="output"})'

_GPUS = "count(count by (UUID) (DCGM_FI_DEV_FB_USED))"
"""How many there are: one that is shared by pods, or cut into instances (MIG), has several series of each metric."""

COST = Row("Cost", (
    Panel("Output tokens by version", "Per second: what each version is used for.",
          (Query(f'model_version_direction:tidegate_tokens:rate5m{{{MODEL},direction="output"}}',
                 "{{model}} {{version}}"),),
          unit=Unit.TOKENS_PER_SECOND),
    Panel("GPU seconds per 1,000 output tokens", "Times the price of a GPU second it is what 1,000 tokens cost.",
          (Query(f"1000 * {_GPUS} / {_ALL_OUTPUT}", "GPU seconds"),), unit=Unit.SECONDS),
    Panel("Energy per 1,000 output tokens", "In joules, of all GPUs.",
          (Query(f"1000 * sum(max by (UUID) (DCGM_FI_DEV_POWER_USAGE)) / {_ALL_OUTPUT}", "J"),)),
))  # fmt: skip

ONE = "{{Hostname}} GPU {{gpu}} {{GPU_I_ID}}"
"""The last is there for an instance of a GPU (MIG) alone."""

_WHOSE = 'label_replace(DCGM_FI_DEV_FB_USED, "pod", "$1", "exported_pod", "(.+)")'
"""Where Prometheus does not honour the exporter's labels, the pod on the GPU is `exported_pod`."""

GPUS = Row("GPU", (
    Panel("Utilisation", "Share of time in which a kernel ran, in percent.",
          (Query("DCGM_FI_DEV_GPU_UTIL", ONE),), unit=Unit.PERCENT, most=100.0),
    Panel("Memory in use", "Of all of it; vLLM reserves most at its start.",
          (Query("DCGM_FI_DEV_FB_USED / (DCGM_FI_DEV_FB_USED + DCGM_FI_DEV_FB_FREE)", ONE),),
          unit=Unit.RATIO, most=1.0),
    Panel("Temperature", "GPUs slow themselves down when they are too hot.",
          (Query("DCGM_FI_DEV_GPU_TEMP", ONE),), unit=Unit.CELSIUS, steps=HOT),
    Panel("Power", "In watts.", (Query("DCGM_FI_DEV_POWER_USAGE", ONE),), unit=Unit.WATT),
    Panel("Last XID error", "0 is none; NVIDIA's list says what a number means.",
          (Query("DCGM_FI_DEV_XID_ERRORS", ONE),), Shape.STAT,
          steps=((None, "green"), (1.0, "red"))),
    Panel("Memory free", "For another version beside this one.",
          (Query("DCGM_FI_DEV_FB_FREE", ONE),), unit=Unit.MEBIBYTES),
    Panel("Whose GPU it is", "On Kubernetes: the pod on each GPU; of an idle one nobody's, or the exporter's own.",
          (Query(f"max by (Hostname, gpu, GPU_I_ID, modelName, pod) ({_WHOSE})", ""),), Shape.TABLE, width=24,
          columns=(Column("Hostname", "Host"), Column("gpu", "GPU"), Column("GPU_I_ID", "Instance"),
                   Column("modelName", "Model of GPU"), Column("pod", "Pod"),
                   Column("Value", "Memory in use", Unit.MEBIBYTES))),
))  # fmt: skip

HOSTS = Row("Host", (
    Panel("CPU in use", "All cores.",
          (Query('1 - avg by (instance) (rate(node_cpu_seconds_total{mode="idle"}[5m]))', "{{instance}}"),),
          unit=Unit.RATIO, most=1.0, steps=FULL),
    Panel("Memory in use", "A version of a model that does not fit ends the engine.",
          (Query("1 - node_memory_MemAvailable_bytes / node_memory_MemTotal_bytes", "{{instance}}"),),
          unit=Unit.RATIO, most=1.0, steps=FULL),
    Panel("Load", "Average over one minute.", (Query("node_load1", "{{instance}}"),)),
    Panel("Disk in use", "Per file system.",
          (Query('1 - node_filesystem_avail_bytes{fstype!~"tmpfs|overlay"} / node_filesystem_size_bytes',
                 "{{instance}} {{mountpoint}}"),), unit=Unit.RATIO, most=1.0, steps=FULL),
    Panel("Network", "Received and sent, without loopback.",
          (Query('sum by (instance) (rate(node_network_receive_bytes_total{device!="lo"}[5m]))', "{{instance}} in"),
           Query('sum by (instance) (rate(node_network_transmit_bytes_total{device!="lo"}[5m]))', "{{instance}} out")),
          unit=Unit.BYTES_PER_SECOND),
    Panel("Temperature", "The hottest sensor.",
          (Query("max by (instance) (node_hwmon_temp_celsius)", "{{instance}}"),), unit=Unit.CELSIUS, steps=HOT),
))  # fmt: skip

CAPACITY = Dashboard(
    "tidegate-capacity", "Tidegate / Cost and capacity",
    "What the load costs and how much room is left. GPU panels need the DCGM exporter, host panels the node exporter, "
    "Ray's its metrics agents.",
    (ENGINES, RAY, COST, GPUS, HOSTS),
    annotations=EVENTS,
)  # fmt: skip
