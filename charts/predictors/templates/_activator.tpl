{{/* The proxy before a model that is scaled to zero. */}}

{{- define "predictors.activatorName" -}}
{{ include "predictors.of" (list (first .) (last .) "activator") }}
{{- end }}

{{/* Labels that select the activator's pods of a model: (list root name) */}}
{{- define "predictors.activatorSelector" -}}
{{ include "predictors.selectorLabels" (first .) }}
app.kubernetes.io/component: activator
predictors.vision/model: {{ last . | toYaml }}
{{- end }}

{{/* Service that callers of a model call: (list root name model) */}}
{{- define "predictors.calledService" -}}
{{- if (index . 2).activator.enabled -}}
{{ include "predictors.activatorName" (list (index . 0) (index . 1)) }}
{{- else -}}
{{ index . 1 }}-predictor
{{- end -}}
{{- end }}

{{/* Its container: (list root name model) */}}
{{- define "predictors.activatorContainer" -}}
{{- $root := index . 0 -}}{{- $name := index . 1 -}}{{- $m := index . 2 -}}
{{- $image := include "predictors.imageOver" (list $root $m.image) | fromJson -}}
{{- $host := printf "%s-predictor.%s.svc" $name (include "predictors.namespace" $root) -}}
name: activator
image: {{ include "predictors.image" (list $root $image) | toYaml }}
imagePullPolicy: {{ $image.pullPolicy }}
args:
  - activator
  - --model
  - {{ $name | toYaml }}
  - --deployment
  - {{ $name }}-predictor
  - --upstream
  - http://{{ $host }}
  - --grpc-upstream
  - {{ $host }}:8081
env:
  - name: PREDICTORS_SERVER_HOST
    value: 0.0.0.0
  - name: PREDICTORS_SERVER_HEALTH_PORT
    value: "8082"
  - name: PREDICTORS_SERVER_METRICS_PORT
    value: "9090"
  - name: PREDICTORS_SERVER_LINGER_S
    value: {{ $m.drain.lingerSeconds | int | quote }}
  - name: PREDICTORS_SERVER_DRAIN_TIMEOUT_S
    value: {{ $m.drain.graceSeconds | int | quote }}
  - name: PREDICTORS_SERVER_MAX_MESSAGE_BYTES
    value: {{ dig "server" "max_message_bytes" 33554432 $m.settings | int64 | quote }}
  - name: PREDICTORS_SERVER_MAX_ARRIVING_MESSAGES
    value: {{ min 32 (max 2 (div (int64 $m.activator.maxPendingBytes) (max 1 (dig "server" "max_message_bytes" 33554432 $m.settings | int64)))) | quote }}
  - name: PREDICTORS_ACTIVATOR_MAX_HELD
    value: {{ $m.activator.maxPendingRequests | int | quote }}
  - name: PREDICTORS_ACTIVATOR_MAX_HELD_BYTES
    value: {{ $m.activator.maxPendingBytes | int64 | quote }}
  - name: PREDICTORS_ACTIVATOR_MAX_WAIT_S
    value: {{ $m.activator.waitTimeoutSeconds | int | quote }}
  - name: POD_NAME
    valueFrom:
      fieldRef:
        fieldPath: metadata.name
  - name: POD_NAMESPACE
    valueFrom:
      fieldRef:
        fieldPath: metadata.namespace
ports:
  - name: http1
    containerPort: 8080
    protocol: TCP
  - name: h2c
    containerPort: 8081
    protocol: TCP
  - name: health
    containerPort: 8082
    protocol: TCP
  - name: metrics
    containerPort: 9090
    protocol: TCP
readinessProbe:
  httpGet:
    path: /v2/health/ready
    port: health
  periodSeconds: 2
  failureThreshold: 2
livenessProbe:
  httpGet:
    path: /v2/health/live
    port: health
  initialDelaySeconds: 10
  periodSeconds: 10
  timeoutSeconds: 5
lifecycle:
  preStop:
    sleep:
      seconds: {{ int $m.drain.preStopSeconds }}
resources:
  {{- include "predictors.quantities" $m.activator.resources | nindent 2 }}
securityContext:
  {{- include "predictors.containerSecurity" (list $m) | nindent 2 }}
{{- end }}
