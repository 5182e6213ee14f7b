"""The environments that launchers give their processes, as the real ones were seen to set them.

Of each launcher the variables that say which process it is, and those that could mislead. Slurm is
22.05, Open MPI 4.1 and 5.0, MPICH 5.0.
"""


def slurm(
    index: int, tasks_per_node: int, nodes: int = 1, gpus: int = 8, listed: str | None = None
) -> dict[str, str]:
    """srun with `gpus` a node; `listed`: what each task may see, by default all of them."""
    node, local = divmod(index, tasks_per_node)
    tasks = tasks_per_node * nodes
    repeat = f"(x{nodes})" if nodes > 1 else ""
    visible = ",".join(map(str, range(gpus))) if listed is None else listed
    # A list of nodes as Slurm writes it; the machine of the tests can be reached by this name.
    names = "localhost" if nodes == 1 else f"localhost,n[1-{nodes - 1}]"
    return {
        "SLURM_JOB_ID": "4096",
        "SLURM_PROCID": str(index),
        "SLURM_LOCALID": str(local),
        "SLURM_NODEID": str(node),
        "SLURM_NTASKS": str(tasks),
        "SLURM_STEP_NUM_TASKS": str(tasks),
        "SLURM_STEP_NUM_NODES": str(nodes),
        "SLURM_STEP_NODELIST": names,
        "SLURM_STEP_TASKS_PER_NODE": f"{tasks_per_node}{repeat}",
        "SLURM_TASKS_PER_NODE": f"{tasks_per_node}{repeat}",
        "SLURM_GPUS_ON_NODE": str(gpus),
    } | ({"CUDA_VISIBLE_DEVICES": visible} if visible else {})


def slurm_batch() -> dict[str, str]:
    """A batch script of Slurm, outside of srun: it looks like task 0, but there is no step."""
    step = slurm(0, 2, nodes=2)
    return {name: value for name, value in step.items() if "STEP" not in name}


def open_mpi(index: int, processes: int, local: int, *, version: int = 5) -> dict[str, str]:
    """mpirun with `local` processes on each machine. Only version 4 tells its own address."""
    address = {"OMPI_MCA_orte_hnp_uri": "8192.0;tcp://127.0.0.1:59371;tcp6://[fd00::2]:47613"}
    return {
        "OMPI_COMM_WORLD_SIZE": str(processes),
        "OMPI_COMM_WORLD_RANK": str(index),
        "OMPI_COMM_WORLD_LOCAL_SIZE": str(local),
        "OMPI_COMM_WORLD_LOCAL_RANK": str(index % local),
        "OMPI_UNIVERSE_SIZE": str(processes),
        "PMIX_RANK": str(index),
    } | (address if version == 4 else {})


def mpich(index: int, processes: int, local: int) -> dict[str, str]:
    """mpiexec of MPICH (Hydra), and of Intel MPI, with `local` processes on each machine."""
    return {
        "PMI_SIZE": str(processes),
        "PMI_RANK": str(index),
        "MPI_LOCALNRANKS": str(local),
        "MPI_LOCALRANKID": str(index % local),
        "PMI_FD": "9",
        "HYDI_CONTROL_FD": "7",
    }


def kubernetes(index: int) -> dict[str, str]:
    """A pod of an indexed job."""
    return {
        "KUBERNETES_SERVICE_HOST": "10.96.0.1",
        "JOB_COMPLETION_INDEX": str(index),
        "HOSTNAME": f"gpt2-{index}",
    }


def tpu_on_kubernetes(index: int, hosts: int, slices: int = 1) -> dict[str, str]:
    """A pod on a host of a Cloud TPU slice, of Google Kubernetes Engine."""
    slice_index, worker = divmod(index, hosts)
    several = {
        "MEGASCALE_NUM_SLICES": str(slices),
        "MEGASCALE_SLICE_ID": str(slice_index),
        "MEGASCALE_COORDINATOR_ADDRESS": "localhost:8080",
    }
    return {
        **kubernetes(index),
        "TPU_SKIP_MDS_QUERY": "true",
        "TPU_WORKER_ID": str(worker),
        "TPU_WORKER_HOSTNAMES": ",".join(["localhost"] * hosts),
    } | (several if slices > 1 else {})


def explicit(index: int, processes: int) -> dict[str, str]:
    """JAX's own variables."""
    return {
        "JAX_COORDINATOR_ADDRESS": "host0:8476",
        "JAX_NUM_PROCESSES": str(processes),
        "JAX_PROCESS_ID": str(index),
    }
