{{/* A ServingRuntime: (list root runtime's-name format model selected) */}}
{{- define "predictors.servingRuntime" -}}
{{- $root := index . 0 -}}{{- $runtime := index . 1 -}}{{- $format := index . 2 -}}{{- $model := index . 3 -}}{{- $selected := index . 4 -}}
{{- $versions := get (include "predictors.versions" $root | fromJson) $format }}
---
apiVersion: serving.kserve.io/v1alpha1
kind: ServingRuntime
metadata:
  name: {{ $runtime | toYaml }}
  namespace: {{ include "predictors.namespace" $root | toYaml }}
  labels:
    {{- include "predictors.labels" (list $root) | nindent 4 }}
spec:
  annotations:
    prometheus.kserve.io/port: {{ include "predictors.metricsPort" $root | quote }}
    prometheus.kserve.io/path: /metrics
  supportedModelFormats:
    {{- range $version := $versions }}
    - name: {{ $format | toYaml }}
      version: {{ $version | quote }}
      autoSelect: {{ $selected }}
      priority: {{ int $root.Values.runtimes.priority }}
    {{- end }}
  protocolVersions: [v2, grpc-v2]
  multiModel: false
  {{- with include "predictors.pullSecrets" $root | trim }}
  {{- . | nindent 2 }}
  {{- end }}
  containers:
    - name: kserve-container
      image: {{ include "predictors.image" (list $root $root.Values.image) | toYaml }}
      imagePullPolicy: {{ $root.Values.image.pullPolicy }}
      args:
        - serve
        - --model
        - "{{ "{{.Name}}" }}=/mnt/models"
      env:
        {{- include "predictors.runtimeEnv" $root | nindent 8 }}
        {{- include "predictors.accessEnv" $root | nindent 8 }}
        {{- with include "predictors.signingEnv" (list $root $format) }}
        {{- . | nindent 8 }}
        {{- end }}
        # with the sleep below, for an InferenceService that sets no times: together less than the 30 s that
        # Kubernetes gives a pod to end. The chart's own set theirs, which KServe merges over these.
        - name: PREDICTORS_SERVER_LINGER_S
          value: "5"
        - name: PREDICTORS_SERVER_DRAIN_TIMEOUT_S
          value: "15"
      lifecycle:
        preStop:
          sleep:
            seconds: 5
      ports:
        {{- include "predictors.ports" $root | nindent 8 }}
      {{- include "predictors.probes" (list $root $model) | nindent 6 }}
      resources:
        {{- include "predictors.quantities" (default dict $model.resources) | nindent 8 }}
      securityContext:
        {{- include "predictors.containerSecurity" (list $model) | nindent 8 }}
      volumeMounts:
        {{- include "predictors.scratchMounts" $root | nindent 8 }}
        - name: cache
          mountPath: /var/cache/predictors
        {{- with include "predictors.accessMounts" $root | trim }}
        {{- . | nindent 8 }}
        {{- end }}
        {{- with include "predictors.signingMounts" (list $root $format) }}
        {{- . | nindent 8 }}
        {{- end }}
  volumes:
    {{- include "predictors.scratchVolumes" (list $model) | nindent 4 }}
    {{- with include "predictors.accessVolumes" $root | trim }}
    {{- . | nindent 4 }}
    {{- end }}
    {{- with include "predictors.signingVolumes" (list $root $format) }}
    {{- . | nindent 4 }}
    {{- end }}
    - name: cache
      emptyDir: {}
{{- end }}
