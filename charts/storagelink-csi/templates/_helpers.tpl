{{- define "storagelink.labels" -}}
app.kubernetes.io/name: storagelink-csi
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: storagelink-csi
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{/* What selects the pods of one component: never changes, because a selector cannot. */}}
{{- define "storagelink.selector" -}}
app.kubernetes.io/name: storagelink-csi
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "storagelink.image" -}}
{{ .root.Values.image.registry }}/{{ .name }}:{{ .root.Values.image.tag | default .root.Chart.AppVersion }}
{{- end }}

{{- define "storagelink.secretName" -}}
{{ .Values.service.existingSecret | default "storagelink-csi-credentials" }}
{{- end }}

{{/* What the schema cannot say: which keys exclude each other, and which are missing together. */}}
{{- define "storagelink.check" -}}
{{- with .Values.service }}
{{- if and .fingerprint .ca }}{{ fail "service.fingerprint and service.ca exclude each other: give one of them" }}{{ end }}
{{- if not (or .fingerprint .ca) }}{{ fail "service.fingerprint or service.ca is required: how the service's certificate is known" }}{{ end }}
{{- if and .existingSecret (or .username .password) }}{{ fail "service.existingSecret excludes service.username and service.password" }}{{ end }}
{{- if not (or .existingSecret (and .username .password)) }}{{ fail "service.existingSecret is required, or service.username with service.password" }}{{ end }}
{{- end }}
{{- with .Values.node }}
{{- if and .sharedKernel .installHostConfig }}{{ fail "node.sharedKernel excludes node.installHostConfig: the nodes have one host together" }}{{ end }}
{{- if and .sharedKernel (ne .iscsid "host") }}{{ fail "node.sharedKernel needs node.iscsid host: one iscsid serves all nodes of a kernel" }}{{ end }}
{{- end }}
{{- end }}

{{- define "storagelink.config" -}}
target = {{ .Values.service.target | toJson }}
port = {{ .Values.service.port }}
username_file = "/run/storagelink-csi/credentials/username"
password_file = "/run/storagelink-csi/credentials/password"
{{- if .Values.service.ca }}
ca_file = "/etc/storagelink-csi/ca.pem"
{{- else }}
fingerprint = {{ .Values.service.fingerprint | toJson }}
{{- end }}
{{- if .Values.fabrics }}

[fabrics]
{{- range $name, $networks := .Values.fabrics }}
{{ $name }} = {{ $networks | toJson }}
{{- end }}
{{- end }}
{{- end }}

{{- define "storagelink.pullSecrets" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* A sidecar: leader election, and a liveness probe that fails when the leader cannot renew its lease. */}}
{{- define "storagelink.sidecar" -}}
- name: {{ .name }}
  image: {{ .values.image.repository }}:{{ .values.image.tag }}
  imagePullPolicy: {{ .root.Values.image.pullPolicy }}
  args:
    - --csi-address=/csi/csi.sock
    - --v={{ .root.Values.log.sidecarVerbosity }}
    - --http-endpoint=:{{ .port }}
    - --leader-election
    - --leader-election-namespace=$(NAMESPACE)
    {{- range .args }}
    - {{ . }}
    {{- end }}
  env:
    - name: NAMESPACE
      valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
    - name: POD_NAME
      valueFrom: {fieldRef: {fieldPath: metadata.name}}
  ports:
    - {name: {{ .name }}, containerPort: {{ .port }}, protocol: TCP}
  livenessProbe:
    httpGet: {path: /healthz/leader-election, port: {{ .name }}}
    initialDelaySeconds: 10
    periodSeconds: 20
    timeoutSeconds: 10
  resources:
    {{- toYaml .values.resources | nindent 4 }}
  securityContext:
    allowPrivilegeEscalation: false
    readOnlyRootFilesystem: true
    capabilities: {drop: [ALL]}
  volumeMounts:
    - {name: socket, mountPath: /csi}
{{- end }}
