/* SPDX-License-Identifier: Apache-2.0 */
#include "host.h"

#include <stdlib.h>

prhs_status prhs_nv_event_create(prhs_device *dev, prhs_event **out) {
    prhs_nv_event *event = calloc(1, sizeof *event);
    if (!event)
        return prhs_fail(&dev->log, PRHS_ERR_MEMORY, "cuda: no host memory for an event");
    prhs_status status = prhs_nv_enter(dev);
    if (status == PRHS_OK) {
        status = prhs_nv_check(dev, "cuEventCreate", prhs_drv.EventCreate(&event->event, PRHS_DRV_EVENT_DEFAULT));
        prhs_nv_leave();
    }
    if (status != PRHS_OK) {
        free(event);
        return status;
    }
    event->head.dev = dev;
    prhs_count(&dev->counters.allocations);
    *out = &event->head;
    return PRHS_OK;
}

void prhs_nv_event_destroy(prhs_event *head) {
    prhs_nv_event *event = (prhs_nv_event *)head;
    if (prhs_nv_enter(head->dev) == PRHS_OK) {
        prhs_nv_check(head->dev, "cuEventDestroy", prhs_drv.EventDestroy(event->event));
        prhs_nv_leave();
    }
    free(event);
}

prhs_status prhs_nv_event_record(prhs_queue *queue, prhs_event *head) {
    prhs_nv_event *event = (prhs_nv_event *)head;
    prhs_status status = prhs_nv_enter(head->dev);
    if (status != PRHS_OK)
        return status;
    status = prhs_nv_check(head->dev, "cuEventRecord", prhs_drv.EventRecord(event->event, prhs_nv_stream_of(queue)));
    prhs_nv_leave();
    event->recorded |= status == PRHS_OK;
    return status;
}

prhs_status prhs_nv_event_query(prhs_event *head) {
    const prhs_nv_event *event = (const prhs_nv_event *)head;
    if (!event->recorded)
        return prhs_fail(&head->dev->log, PRHS_ERR_STATE, "cuda: the event was never recorded");
    prhs_status status = prhs_nv_enter(head->dev);
    if (status != PRHS_OK)
        return status;
    const prhs_drv_result result = prhs_drv.EventQuery(event->event);
    status = result == PRHS_DRV_NOT_READY ? PRHS_NOT_READY : prhs_nv_check(head->dev, "cuEventQuery", result);
    prhs_nv_leave();
    return status;
}

prhs_status prhs_nv_event_elapsed(prhs_event *begin, prhs_event *end, double *seconds) {
    float milliseconds = 0.0f;
    prhs_status status = prhs_nv_event_query(begin);
    if (status == PRHS_OK)
        status = prhs_nv_event_query(end);
    if (status != PRHS_OK || (status = prhs_nv_enter(begin->dev)) != PRHS_OK)
        return status;
    status = prhs_nv_check(begin->dev, "cuEventElapsedTime",
                             prhs_drv.EventElapsedTime(&milliseconds, ((const prhs_nv_event *)begin)->event,
                                                       ((const prhs_nv_event *)end)->event));
    prhs_nv_leave();
    *seconds = milliseconds > 0.0f ? milliseconds * 1e-3 : 0.0;
    return status;
}
