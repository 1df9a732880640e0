/* SPDX-License-Identifier: Apache-2.0 */
/* Events are markers: done when all that was enqueued before them is. */
#include "host.h"

#include <stdlib.h>

prhs_status prhs_cl_event_create(prhs_device *dev, prhs_event **out) {
    prhs_cl_event *event = calloc(1, sizeof *event);
    if (!event)
        return prhs_fail(&dev->log, PRHS_ERR_MEMORY, "opencl: no host memory for an event");
    event->head.dev = dev;
    prhs_count(&dev->counters.allocations);
    *out = &event->head;
    return PRHS_OK;
}

void prhs_cl_event_destroy(prhs_event *event) {
    prhs_cl_event *e = (prhs_cl_event *)event;
    if (e->event)
        prhs_cl.ReleaseEvent(e->event);
    free(e);
}

prhs_status prhs_cl_event_record(prhs_queue *queue, prhs_event *event) {
    prhs_cl_event *e = (prhs_cl_event *)event;
    const prhs_log *log = &queue->dev->log;
    cl_event marker = NULL;
    cl_int error = prhs_cl.EnqueueMarkerWithWaitList(prhs_cl_queue_of(queue), 0, NULL, &marker);
    if (error != CL_SUCCESS)
        return prhs_cl_fail(log, "clEnqueueMarkerWithWaitList", error);
    if (e->event)
        prhs_cl.ReleaseEvent(e->event);
    e->event = marker;
    /* Without it a driver may hold the work back for ever, and event_query would never see progress. */
    error = prhs_cl.Flush(prhs_cl_queue_of(queue));
    return error == CL_SUCCESS ? PRHS_OK : prhs_cl_fail(log, "clFlush", error);
}

prhs_status prhs_cl_event_query(prhs_event *event) {
    const prhs_cl_event *e = (const prhs_cl_event *)event;
    const prhs_log *log = &event->dev->log;
    cl_int state = CL_QUEUED;
    if (!e->event)
        return prhs_fail(log, PRHS_ERR_STATE, "opencl: the event was never recorded");
    cl_int error = prhs_cl.GetEventInfo(e->event, CL_EVENT_COMMAND_EXECUTION_STATUS, sizeof state, &state, NULL);
    if (error != CL_SUCCESS)
        return prhs_cl_fail(log, "clGetEventInfo", error);
    if (state < 0)
        return prhs_cl_fail(log, "the device, while it ran the queue", state);
    return state == CL_COMPLETE ? PRHS_OK : PRHS_NOT_READY;
}

/* When the marker was passed, in nanoseconds; 0: unknown (a queue without profiling, or a driver without clocks). */
static cl_ulong time_of(const prhs_event *event) {
    cl_ulong when = 0;
    cl_event e = ((const prhs_cl_event *)event)->event;
    return prhs_cl.GetEventProfilingInfo(e, CL_PROFILING_COMMAND_END, sizeof when, &when, NULL) == CL_SUCCESS ? when : 0;
}

prhs_status prhs_cl_event_elapsed(prhs_event *begin, prhs_event *end, double *seconds) {
    prhs_status status = prhs_cl_event_query(begin);
    if (status == PRHS_OK)
        status = prhs_cl_event_query(end);
    if (status != PRHS_OK)
        return status;
    cl_ulong from = time_of(begin), to = time_of(end);
    *seconds = from && to > from ? (double)(to - from) * 1e-9 : 0.0;
    return PRHS_OK;
}
