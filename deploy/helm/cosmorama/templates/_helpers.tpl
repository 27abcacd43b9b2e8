{{- define "cosmorama.fullname" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 63 | trimSuffix "-" }}{{ else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 63 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "cosmorama.labels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{/* Labels that select the pods of one role: (list . "worker") */}}
{{- define "cosmorama.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ $root.Chart.Name }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{/* Who answers clients. */}}
{{- define "cosmorama.front" -}}
{{- if .Values.fleet.enabled }}api{{ else }}server{{ end }}
{{- end }}

{{/* Who generates. */}}
{{- define "cosmorama.maker" -}}
{{- if .Values.fleet.enabled }}worker{{ else }}server{{ end }}
{{- end }}

{{- define "cosmorama.probe" -}}
{{- $probe := index . 0 }}
httpGet: {path: {{ $probe.path }}, port: http-api}
{{- range $name := list "initialDelaySeconds" "periodSeconds" "timeoutSeconds" "failureThreshold" "successThreshold" }}
{{- with index $probe $name }}
{{ $name }}: {{ . }}
{{- end }}
{{- end }}
{{- end }}

{{- define "cosmorama.environment" -}}
- {name: COSMORAMA_HOST, value: 0.0.0.0}
- {name: COSMORAMA_PORT, value: {{ .Values.model.apiPort | quote }}}
- {name: COSMORAMA_LOG_FORMAT, value: {{ ternary "json" "text" .Values.model.jsonLogging }}}
- {name: NIM_LOG_LEVEL, value: {{ .Values.model.logLevel | quote }}}
- {name: NIM_CACHE_PATH, value: {{ .Values.model.nimCache | quote }}}
- {name: COSMORAMA_STATE_DIR, value: /var/lib/cosmorama}
- {name: COSMORAMA_DRAIN_S, value: {{ .Values.drainSeconds | quote }}}
{{- with .Values.artifacts.url }}
- {name: COSMORAMA_ARTIFACTS, value: {{ . | quote }}}
{{- end }}
{{- with .Values.database.urlSecret }}
- name: COSMORAMA_DATABASE_URL
  valueFrom: {secretKeyRef: {name: {{ . }}, key: COSMORAMA_DATABASE_URL}}
{{- end }}
{{- with .Values.apiKeys.secret }}
- name: COSMORAMA_API_KEYS
  valueFrom: {secretKeyRef: {name: {{ . }}, key: COSMORAMA_API_KEYS}}
{{- end }}
{{- with .Values.model.ngcAPISecret }}
- name: NGC_API_KEY
  valueFrom: {secretKeyRef: {name: {{ . }}, key: NGC_API_KEY, optional: true}}
{{- end }}
{{- with .Values.model.hfTokenSecret }}
- name: HF_TOKEN
  valueFrom: {secretKeyRef: {name: {{ . }}, key: HF_TOKEN}}
{{- end }}
{{- $given := dict }}
{{- range .Values.env }}{{ $_ := set $given .name (.value | default "") }}{{ end }}
{{- if .Values.model.name }}
- {name: COSMORAMA_MODEL, value: {{ .Values.model.name | quote }}}
{{- else if not (or (hasKey $given "NIM_MODEL_PATH") (hasKey $given "COSMORAMA_MODEL") (hasKey $given "COSMORAMA_MODELS")) }}
- {name: COSMORAMA_MODEL, value: {{ ternary (printf "cosmos3-%s" $given.NIM_MODEL_VARIANT) "microcosm" (hasKey $given "NIM_MODEL_VARIANT") | quote }}}
{{- end }}
{{- with .Values.env }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* A pod of one role: (list . "server" | "api" | "worker") */}}
{{- define "cosmorama.pod" -}}
{{- $root := index . 0 }}
{{- $role := index . 1 }}
{{- with $root }}
metadata:
  labels:
    {{- include "cosmorama.labels" . | nindent 4 }}
    app.kubernetes.io/component: {{ $role }}
    {{- with .Values.podLabels }}{{ toYaml . | nindent 4 }}{{ end }}
  {{- with .Values.podAnnotations }}
  annotations: {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  {{- with .Values.imagePullSecrets }}
  imagePullSecrets: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- if or .Values.serviceAccount.create .Values.serviceAccount.name }}
  serviceAccountName: {{ .Values.serviceAccount.name | default (include "cosmorama.fullname" .) }}
  {{- end }}
  automountServiceAccountToken: false
  securityContext: {{- toYaml .Values.podSecurityContext | nindent 4 }}
  terminationGracePeriodSeconds: {{ add .Values.drainSeconds 30 }}
  {{- with .Values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- if ne $role "api" }}
  {{- with .Values.runtimeClassName }}
  runtimeClassName: {{ . }}
  {{- end }}
  {{- with .Values.nodeSelector }}
  nodeSelector: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.tolerations }}
  tolerations: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.affinity }}
  affinity: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.topologySpreadConstraints }}
  topologySpreadConstraints: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- end }}
  {{- with .Values.initContainers }}
  initContainers: {{- toYaml . | nindent 4 }}
  {{- end }}
  containers:
    - name: cosmorama
      image: "{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}"
      imagePullPolicy: {{ .Values.image.pullPolicy | default "IfNotPresent" }}
      {{- if and .Values.customCommand (ne $role "api") }}
      command: {{- toYaml .Values.customCommand | nindent 8 }}
      {{- end }}
      {{- if eq $role "api" }}
      args: [serve, --role, api]
      {{- else if .Values.customArgs }}
      args: {{- toYaml .Values.customArgs | nindent 8 }}
      {{- else if eq $role "worker" }}
      args: [worker]
      {{- else }}
      args: [serve]
      {{- end }}
      securityContext: {{- toYaml .Values.containerSecurityContext | nindent 8 }}
      env: {{- include "cosmorama.environment" . | nindent 8 }}
      {{- if or .Values.envFrom .Values.artifacts.credentialsSecret }}
      envFrom:
        {{- with .Values.artifacts.credentialsSecret }}
        - secretRef: {name: {{ . }}}
        {{- end }}
        {{- with .Values.envFrom }}{{ toYaml . | nindent 8 }}{{ end }}
      {{- end }}
      ports:
        - {name: http-api, containerPort: {{ .Values.model.apiPort }}}
      {{- $ready := ternary (dict "path" .Values.livenessProbe.path) dict (eq $role "api") }}
      {{- /* Who answers clients takes jobs before a worker is there, and would be unreachable if it had to be ready. */}}
      {{- if .Values.startupProbe.enabled }}
      startupProbe: {{- include "cosmorama.probe" (list (merge $ready .Values.startupProbe)) | nindent 8 }}
      {{- end }}
      {{- if .Values.livenessProbe.enabled }}
      livenessProbe: {{- include "cosmorama.probe" (list .Values.livenessProbe) | nindent 8 }}
      {{- end }}
      {{- if .Values.readinessProbe.enabled }}
      {{- $ready := ternary (dict "path" .Values.livenessProbe.path) dict (eq $role "api") }}
      readinessProbe: {{- include "cosmorama.probe" (list (merge $ready .Values.readinessProbe)) | nindent 8 }}
      {{- end }}
      resources: {{- toYaml (ternary .Values.fleet.api.resources .Values.resources (eq $role "api")) | nindent 8 }}
      volumeMounts:
        - {name: state, mountPath: /var/lib/cosmorama}
        - {name: dshm, mountPath: /dev/shm}
        {{- if ne $role "api" }}
        - {name: model-store, mountPath: {{ .Values.model.nimCache }}}
        {{- end }}
        {{- with .Values.extraVolumeMounts }}{{ toYaml . | nindent 8 }}{{ end }}
  volumes:
    - {name: state, emptyDir: {}}
    - {name: dshm, emptyDir: {medium: Memory, sizeLimit: {{ .Values.sharedMemory.sizeLimit }}}}
    {{- if ne $role "api" }}
    {{- if .Values.nfs.enabled }}
    - name: model-store
      nfs: {server: {{ required "nfs.server: which server?" .Values.nfs.server }}, path: {{ required "nfs.path: which path?" .Values.nfs.path }}, readOnly: {{ .Values.nfs.readOnly }}}
    {{- else if .Values.hostPath.enabled }}
    - name: model-store
      hostPath: {path: {{ required "hostPath.path: which folder?" .Values.hostPath.path }}, type: DirectoryOrCreate}
    {{- else if and .Values.persistence.enabled .Values.persistence.existingClaim }}
    - name: model-store
      persistentVolumeClaim: {claimName: {{ .Values.persistence.existingClaim }}}
    {{- else if and .Values.persistence.enabled (not .Values.statefulSet.enabled) }}
    - name: model-store
      persistentVolumeClaim: {claimName: {{ include "cosmorama.fullname" . }}-model-store}
    {{- else if not .Values.persistence.enabled }}
    - {name: model-store, emptyDir: {}}
    {{- end }}
    {{- end }}
    {{- with .Values.extraVolumes }}{{ toYaml . | nindent 4 }}{{ end }}
{{- end }}
{{- end }}

{{- define "cosmorama.checked" -}}
{{- $stores := add (ternary 1 0 .Values.persistence.enabled) (ternary 1 0 .Values.nfs.enabled) (ternary 1 0 .Values.hostPath.enabled) }}
{{- if gt $stores 1 }}{{ fail "persistence, nfs, hostPath: enable one of them" }}{{ end }}
{{- if and .Values.autoscaling.enabled .Values.keda.enabled }}{{ fail "autoscaling, keda: enable one of them" }}{{ end }}
{{- $several := or (gt (int .Values.replicaCount) 1) .Values.fleet.enabled .Values.autoscaling.enabled .Values.keda.enabled }}
{{- $shared := dict }}
{{- range .Values.env }}{{ $_ := set $shared .name true }}{{ end }}
{{- if and $several (not .Values.database.urlSecret) (not (hasKey $shared "COSMORAMA_DATABASE_URL")) (not .Values.envFrom) }}
{{- fail "database.urlSecret: several pods need a database that they share (a secret with COSMORAMA_DATABASE_URL)" }}
{{- end }}
{{- if and $several (not .Values.artifacts.url) (not (hasKey $shared "COSMORAMA_ARTIFACTS")) (not .Values.envFrom) }}
{{- fail "artifacts.url: several pods need a store of clips that they share, such as s3://bucket/prefix" }}
{{- end }}
{{- end }}
